"""tidegate-bench: it measures what it says, and leaves nothing behind. No figure is judged here."""

import json
import os
import signal

import pytest

from harness import Process, pool, program, wait_for


def bench(box, *words):
    (box.path / "tmp").mkdir(exist_ok=True)
    result = box.run(program("tidegate-bench"), *words, "--json", deadline_s=120,
                     env=dict(os.environ, TMPDIR=str(box.path / "tmp")))
    assert result.returncode == 0, result.stderr
    assert not list((box.path / "tmp").iterdir())
    return json.loads(result.stdout)


def test_throughput_against_a_running_daemon_counts_every_message(box, daemon, sink):
    d = daemon(pool([sink]))
    answer = bench(box, "throughput", "-s", d.socket, "-p", "events", "-P", 3, "-n", 500, "-r", 2)
    row = answer["clients"][0]
    assert row["client"] == "tidegate" and row["messages_per_second"] > 0
    assert row["publishers_ns"] > 0 and row["daemon_ns"] > 0
    assert row["publishers_and_daemon_ns"] >= row["publishers_ns"]
    # Each process and round: one message first, then 500.
    assert d.rows("pools")[0]["delivered"] == 2 * 3 * 501


BROKERS = {"sink": ("mqtt", "libmosquitto"), "mosquitto": ("mqtt", "libmosquitto"), "sink redis": ("redis", "hiredis"),
           "redis": ("redis", "hiredis")}


@pytest.mark.parametrize("kind", BROKERS)
def test_both_clients_take_turns_on_a_broker_of_its_own(box, kind):
    protocol, library = BROKERS[kind]
    answer = bench(box, "throughput", "--start", kind.split()[0], "--protocol", protocol, "--direct", "-n", 1000, "-r", 2)
    assert [row["client"] for row in answer["clients"]] == ["tidegate", library]
    assert all(row["broker_ns"] > 0 for row in answer["clients"])


def test_every_measurement_runs_from_nothing(box):
    answer = bench(box, "enqueue", "--start", "sink", "-r", 3, "-n", 256)
    assert set(answer["ns"]) == {"publish", "batch", "reserve"} and min(answer["ns"].values()) > 0
    answer = bench(box, "latency", "--start", "sink", "--direct", "-r", 1, "-n", 20)
    assert len(answer["results"]) == 4
    assert all(0 < row["p50_ns"] <= row["p99_ns"] for row in answer["results"])
    answer = bench(box, "spawn", "--start", "sink", "--direct", "-r", 1, "-n", 5)
    assert len(answer["results"]) == 5 and all(row["per_second"] > 0 for row in answer["results"])
    answer = bench(box, "idle", "--start", "sink", "--lanes", 50, "--duration", "300ms")
    assert answer["lanes"] == 50 and answer["seconds"] >= 0.3


def test_interrupt_ends_and_removes_what_was_started(box):
    scratch = box.path / "tmp"
    scratch.mkdir()
    process = Process(box, "bench", [program("tidegate-bench"), "throughput", "--start", "sink", "-r", 101, "-n", 100000],
                      env=dict(os.environ, TMPDIR=str(scratch)))
    wait_for(lambda: list(scratch.glob("*/tidegate.sock")), "its daemon")
    started = children(process.pid)
    assert len(started) >= 2
    process.popen.send_signal(signal.SIGINT)
    assert process.wait(20) == 1
    assert not list(scratch.iterdir())
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def test_failure_is_told_and_fails(box, daemon, sink):
    d = daemon(pool([sink]))
    result = box.run(program("tidegate-bench"), "throughput", "-s", d.socket, "-p", "nowhere")
    assert result.returncode == 1 and "nowhere" in result.stderr
    sink.tell("set", "reject", "135")
    result = box.run(program("tidegate-bench"), "throughput", "-s", d.socket, "-p", "events")
    assert result.returncode == 1 and "rejected" in result.stderr
