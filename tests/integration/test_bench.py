"""tidegate-bench: its measurements run and leave nothing behind. No figure is judged here."""

import json
import os
import signal

import pytest

import harness_amqp
import harness_stomp
from harness import BUILD, Process, have, pool, program, wait_for


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


# --start, --protocol, and the client library that is measured beside tidegate.
BROKERS = [("sink", "mqtt", "libmosquitto"), ("sink", "nats", "libnats"), ("sink", "amqp", "librabbitmq"),
           ("sink", "redis", "hiredis"), ("mosquitto", "mqtt", "libmosquitto"), ("nats", "nats", "libnats"),
           ("rabbitmq", "amqp", "librabbitmq"), ("redis", "redis", "hiredis"), ("sink", "stomp", None),
           ("rabbitmq", "stomp", None), ("activemq", "stomp", None)]


def skip_without(kind, library):
    if kind == "rabbitmq" and not harness_amqp.available():
        pytest.skip("rabbitmq-server is not installed")
    if kind == "activemq" and not harness_stomp.available():
        pytest.skip("activemq is not installed")
    server = {"nats": "nats-server", "redis": "redis-server"}.get(kind)
    if server and not have(server):
        pytest.skip(f"{server} is not installed")
    if library not in ("hiredis", None) and f"#define HAVE_{library.upper()} 1" not in (BUILD / "build_config.h").read_text():
        pytest.skip(f"tidegate-bench was built without {library}")


@pytest.mark.parametrize("kind,protocol,library", BROKERS)
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
def test_both_clients_take_turns_on_a_broker_of_its_own(box, kind, protocol, library, tls):
    skip_without(kind, library)
    direct = library is not None and not (tls and library == "hiredis")
    answer = bench(box, "throughput", "--start", kind, "--protocol", protocol, *(["--direct"] if direct else []),
                   *(["--tls"] if tls else []), "-n", 1000, "-r", 2, "-P", 2)
    assert [row["client"] for row in answer["clients"]] == ["tidegate", library][:1 + direct]
    assert all(row["broker_ns"] > 0 for row in answer["clients"])
    assert answer["protocol"] == protocol and answer["tls"] == tls


@pytest.mark.parametrize("kind", ["mosquitto", "nats", "redis"])
def test_unconfirmed_messages_are_measured_too(box, kind):
    library = next(library for name, _, library in BROKERS if name == kind)
    skip_without(kind, library)
    answer = bench(box, "throughput", "--start", kind, "--unconfirmed", "--direct", "-n", 1000, "-r", 2)
    assert [row["client"] for row in answer["clients"]] == ["tidegate", library] and answer["unconfirmed"]


def test_compare_measures_every_row_that_was_asked_for(box):
    skip_without("redis", "hiredis")
    answer = bench(box, "compare", "--protocol", "redis", "-P", 2, "-n", 200, "-r", 2)
    assert [(row["name"], row["tls"], [client["client"] for client in row["clients"]]) for row in answer["rows"]] == [
        ("redis, XADD", False, ["tidegate", "hiredis"]), ("redis, XADD", True, ["tidegate"]),
        ("redis, PUBLISH", False, ["tidegate", "hiredis"]), ("redis, PUBLISH", True, ["tidegate"])]
    clients = [client for row in answer["rows"] for client in row["clients"]]
    assert all(client["messages_per_second"] > 0 and client["publishers_and_daemon_ns"] > 0 and client["rounds"] == 2
               for client in clients)


@pytest.mark.parametrize("words,said", [
    (["--start", "nowhere"], "sink mosquitto nats rabbitmq redis activemq"),
    (["--start", "nats", "--protocol", "mqtt"], "it speaks nats, not mqtt"),
    (["--protocol", "smtp"], "mqtt nats amqp redis stomp"),
    (["--tls"], "--start"),
    (["--links", "2"], "--start"),
    (["--start", "rabbitmq", "--unconfirmed"], "amqp"),
])
def test_contradicting_options_are_refused_before_anything_starts(box, words, said):
    result = box.run(program("tidegate-bench"), "throughput", *words)
    assert result.returncode == 2 and said in result.stderr


def test_every_measurement_runs_from_nothing(box):
    answer = bench(box, "enqueue", "--start", "sink", "-r", 3, "-n", 256)
    assert set(answer["ns"]) == {"publish", "batch", "reserve"} and min(answer["ns"].values()) > 0
    answer = bench(box, "latency", "--start", "sink", "--links", 2, "--direct", "-r", 1, "-n", 20)
    assert len(answer["results"]) == 4
    assert all(0 < row["p50_ns"] <= row["p99_ns"] for row in answer["results"])
    answer = bench(box, "spawn", "--start", "sink", "--direct", "-r", 1, "-n", 5)
    assert len(answer["results"]) == 5 and all(row["per_second"] > 0 for row in answer["results"])
    answer = bench(box, "idle", "--start", "sink", "--lanes", 50, "--duration", "300ms")
    assert answer["lanes"] == 50 and answer["seconds"] >= 0.3


PACED = [("mosquitto", "libmosquitto"), ("nats", "libnats"), ("rabbitmq", "librabbitmq"), ("redis", "hiredis")]


@pytest.mark.parametrize("kind,library", PACED)
def test_paced_measures_cpu_and_latency_beside_the_direct_client(box, kind, library):
    skip_without(kind, library)
    answer = bench(box, "paced", "--start", kind, "--direct", "-P", 2, "--rate", 100, "--seconds", 1, "-r", 1)
    assert answer["rate"] == 100 and answer["processes"] == 2 and answer["milliseconds"] == 1000
    assert [row["client"] for row in answer["clients"]] == ["tidegate", library]
    assert all(row["publishers_ns"] > 0 and row["broker_ns"] > 0 for row in answer["clients"])
    assert all(0 < row["p50_ns"] <= row["p99_ns"] for row in answer["clients"])
    assert answer["clients"][0]["daemon_ns"] > 0


def test_paced_publishes_as_often_as_its_rate_says(box, daemon, sink):
    d = daemon(pool([sink]))
    bench(box, "paced", "-s", d.socket, "-p", "events", "-P", 2, "--rate", 50, "--seconds", 1, "-r", 1)
    # Each process: one message first, then one for each interval that begins within the second.
    assert 2 * 50 <= d.rows("pools")[0]["delivered"] <= 2 * 52


def test_interrupt_ends_and_removes_everything_started(box):
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
