"""tidegate-pub: every line once, honest sums, errors that say where."""

import json
import os
import pty
import select
import signal
import subprocess

import pytest

from harness import Process, Sink, pool, program, wait_for

FIRST = ("accepted", "delivered", "sent", "rejected", "expired", "unknown")


def summary(text):
    line = [line for line in text.splitlines() if line.startswith("accepted=")][-1]
    pairs = [word.split("=") for word in line.split()]
    assert tuple(name for name, _ in pairs[:6]) == FIRST
    return {name: float(value) if name == "seconds" else int(value) for name, value in pairs}


def pub(d, *words, topic="t"):
    return [program("tidegate-pub"), "-s", str(d.socket), "-p", "events", "-t", topic, *map(str, words)]


def bodies(sink):
    return [row["body"] for row in sink.arrivals()]


@pytest.mark.sanitizers
def test_lines_of_files_arrive_once_and_in_order(box, daemon, sink):
    d = daemon(pool([sink]))
    names = [box.path / "one", box.path / "two"]
    names[0].write_text("".join(f"a {i}\n" for i in range(5000)))
    names[1].write_text("".join(f"b {i}\n" for i in range(5000)) + "\nlast")
    result = d.publish("--json", "--stats", *names)
    assert result.returncode == 0, result.stderr
    expected = [f"a {i}" for i in range(5000)] + [f"b {i}" for i in range(5000)] + ["", "last"]
    assert bodies(sink) == expected
    sums = summary(result.stderr)
    assert sums["accepted"] == sums["delivered"] == len(expected)
    assert "latency p50=" in result.stderr
    answer = json.loads(result.stdout)
    assert answer["success"] and answer["delivered"] == len(expected)
    assert answer["bytes"] == sum(map(len, expected))
    assert sum(count for _, count in answer["latency_ns"]["buckets"]) == len(expected)
    assert answer["latency_ns"]["p50"] <= answer["latency_ns"]["p99"] <= answer["latency_ns"]["max"]


@pytest.mark.sanitizers
def test_standard_input_nul_and_whole_files(box, daemon, sink):
    d = daemon(pool([sink]))
    result = box.run(*pub(d), stdin=None, input="x\ny\n")
    assert result.returncode == 0 and bodies(sink) == ["x", "y"], result.stderr
    result = box.run(*pub(d, "--null", "-"), stdin=None, input="1\0two 2\0")
    assert result.returncode == 0 and bodies(sink)[2:] == ["1", "two 2"], result.stderr
    whole = box.path / "whole"
    whole.write_text("all of it")
    result = d.publish("--whole-file", whole, whole)
    assert result.returncode == 0 and bodies(sink)[4:] == ["all of it"] * 2, result.stderr
    result = box.run(*pub(d), stdin=None, input="")
    assert result.returncode == 0 and summary(result.stderr)["accepted"] == 0


def test_input_that_trickles_is_published_as_it_comes(box, daemon, sink):
    d = daemon(pool([sink]))
    with subprocess.Popen(pub(d), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for number in range(1, 4):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            wait_for(lambda n=number: len(bodies(sink)) == n, f"line {number} to arrive")
        _, words = process.communicate(timeout=20)
    assert process.returncode == 0 and summary(words)["delivered"] == 3


@pytest.mark.sanitizers
def test_line_too_long_is_named_and_the_rest_is_published(box, daemon, sink):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("short\n" + "x" * 9000 + "\n" + "y" * 8190 + "\nend\n")
    result = d.publish("--ring", "16384", lines)
    assert result.returncode == 1
    assert f"{lines}:2: line of 9000 bytes" in result.stderr and "8192" in result.stderr
    assert f"{lines}:3: line of 8190 bytes" in result.stderr
    assert bodies(sink) == ["short", "end"]
    sums = summary(result.stderr)
    assert (sums["accepted"], sums["delivered"], sums["skipped"]) == (2, 2, 2)


def test_file_that_cannot_be_read_fails_the_run(box, daemon, sink):
    d = daemon(pool([sink]))
    result = d.publish(box.path / "missing")
    assert result.returncode == 1 and "missing: cannot open: No such file" in result.stderr


def test_rejections_name_line_code_and_reason(box, daemon):
    sink = Sink(box, options=["--reject", "151", "--reject-every", "10", "--reason", "quota is used up"]).start()
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("".join(f"{i}\n" for i in range(1, 101)))
    result = d.publish("--json", lines)
    assert result.returncode == 1
    sums = summary(result.stderr)
    assert (sums["accepted"], sums["delivered"], sums["rejected"]) == (100, 90, 10)
    assert f"{lines}:10: rejected, code 151 (0x97)" in result.stderr
    assert "quota is used up" in result.stderr
    assert "5 more were rejected" in result.stderr
    assert [row["code"] for row in json.loads(result.stdout)["rejections"]] == [151] * 5


@pytest.mark.parametrize("words", [[], ["--keep-cr"], ["--null"]])
def test_line_ends_of_another_system_are_no_part_of_messages(box, daemon, sink, words):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_bytes(b"one\r\n\r\nt\rwo\nthree\r\r\n" + b"x" * 8000 + b"\r\nlast\r")
    result = d.publish(*words, lines)
    assert result.returncode == 0, result.stderr
    arrived = [row["body"].encode() for row in sink.arrivals()]
    escaped = b"\\r" if b"\\r" in b"".join(arrived) else b"\r"
    plain = {(): [b"one", b"", b"t\rwo", b"three\r", b"x" * 8000, b"last\r"],
             ("--keep-cr",): [b"one\r", b"\r", b"t\rwo", b"three\r\r", b"x" * 8000 + b"\r", b"last\r"]}.get(tuple(words))
    if plain is not None:
        assert arrived == [body.replace(b"\r", escaped) for body in plain]
    else:
        assert len(arrived) == 1


def test_deadline_and_wait_end_a_run_without_a_broker(box, daemon):
    d = daemon(pool([Sink(box)]), ready=False)
    result = d.publish("--timeout", "300", "-m", "x")
    assert result.returncode == 1 and summary(result.stderr)["expired"] == 1
    result = d.publish("--wait", "300", "-m", "x")
    assert result.returncode == 1 and summary(result.stderr)["unanswered"] == 1
    assert "gave up after 300 ms" in result.stderr


@pytest.fixture
def silent(box, daemon):
    """A daemon whose broker answers nothing."""
    sink = Sink(box, options=["--no-ack"]).start()
    return daemon(pool([sink], message_timeout_ms=2000, health={"ack_timeout_ms": 1000}))


def ended(process, returncode):
    assert process.wait(30) == returncode, process.text()
    return summary(process.text())


@pytest.mark.parametrize("words", [["--timeout", "1s"], ["--expiry", "1s"], []])
def test_daemon_away_for_longer_than_the_deadline_ends_a_run(box, silent, words):
    """Its answer would be that the deadline has passed; without one of its own that is the pool's."""
    pub_process = Process(box, "pub", pub(silent, *words, "-m", "x"))
    wait_for(lambda: silent.rows("pools")[0]["accepted"] == 1, "the message to be with the daemon")
    silent.process.kill()
    sums = ended(pub_process, 1)
    assert (sums["accepted"], sums["unanswered"]) == (1, 1)
    assert "gave up: tidegated has been away for " in pub_process.text()


def test_full_ring_without_a_daemon_ends_a_run(box, silent):
    lines = box.path / "lines"
    lines.write_text("line\n" * 100000)
    pub_process = Process(box, "pub", pub(silent, "--json", "--ring", 16384, "--timeout", "1s", lines))
    wait_for(lambda: silent.rows("pools")[0]["accepted"] > 0, "messages to be with the daemon")
    silent.process.kill()
    sums = ended(pub_process, 1)
    assert sums["unanswered"] > 0 and sums["accepted"] < 100000
    assert "gave up: tidegated has been away for " in pub_process.text()


def test_input_that_goes_on_waits_for_the_next_daemon(box, daemon, sink):
    d = daemon(pool([sink]))
    with subprocess.Popen(pub(d, "--timeout", "100"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write("one\n")
        process.stdin.flush()
        wait_for(lambda: bodies(sink) == ["one"], "the first message to arrive")
        d.process.kill()
        process.stdin.write("two\n")
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):  # well past the deadline
            process.wait(4)
        d.start()
        _, words = process.communicate(timeout=20)
    sums = summary(words)
    assert (sums["delivered"], sums["expired"], sums["unanswered"]) == (1, 1, 0), words


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_waiting_for_a_daemon_that_is_away(box, silent, number):
    pub_process = Process(box, "pub", pub(silent, "--timeout", "60min", "-m", "x"))
    wait_for(lambda: silent.rows("pools")[0]["accepted"] == 1, "the message to be with the daemon")
    silent.process.kill()
    pub_process.popen.send_signal(number)
    assert ended(pub_process, 1)["unanswered"] == 1


def test_ignored_signals_stay_ignored(box, daemon, sink):
    """As nohup wants it, and a shell for what it runs in the background."""
    d = daemon(pool([sink]))
    with subprocess.Popen(["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *pub(d)], stdin=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdin.write("one\n")
        process.stdin.flush()
        wait_for(lambda: bodies(sink) == ["one"], "the first line to arrive")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate("two\n", timeout=20)
    assert process.returncode == 0 and bodies(sink) == ["one", "two"], words


# The closed descriptor, the expected output, and the exit status; and what of the messages comes along.
CLOSED = {
    "stdin": ("<&-", [], "standard input: cannot read: Bad file descriptor", 1, 0),
    "stdout": (">&-", ["-m", "x", "--json"], "cannot write the JSON object", 1, 1),
    "stderr": ("2>&-", ["-m", "x"], "", 0, 1),
    "all": ("<&- >&- 2>&-", ["-m", "x"], "", 0, 1),
}


@pytest.mark.parametrize("case", CLOSED)
def test_closed_standard_descriptors_are_no_place_for_sockets(box, daemon, sink, case):
    closed, words, said, status, delivered = CLOSED[case]
    d = daemon(pool([sink]))
    result = box.run("bash", "-c", f'exec "$@" {closed}', "bash", *pub(d, *words))
    assert result.returncode == status, result.stderr
    assert said in result.stderr
    assert len(bodies(sink)) == delivered
    assert "client_gone" not in d.process.text()


@pytest.mark.parametrize("tool", ["tidegate-pub", "tidegatectl", "tidegate-sink", "tidegate-bench"])
def test_full_disk_is_an_error(box, tool):
    result = box.run("bash", "-c", f"exec {program(tool)} --help > /dev/full")
    assert result.returncode == 1 and f"{tool}: standard output: No space left on device" in result.stderr


def test_reader_of_the_errors_that_goes_away_does_not_end_the_run(box, daemon, sink):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("".join("x" * 9000 + f"\n{i}\n" for i in range(1000)))
    command = " ".join(pub(d, "--ring", 16384, lines))
    result = box.run("bash", "-c", f"{command} 2>&1 >/dev/null | head -1; exit ${{PIPESTATUS[0]}}")
    assert result.returncode == 1
    assert bodies(sink) == [str(i) for i in range(1000)]


def test_signal_stops_reading_and_keeps_what_was_accepted(box, daemon, sink):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("".join(f"{i}\n" for i in range(1, 100001)))
    process = Process(box, "pub", pub(d, "--rate", 2000, lines))
    wait_for(lambda: len(bodies(sink)) > 200, "some lines to arrive")
    process.popen.send_signal(signal.SIGINT)
    assert process.wait() == 1
    sums = summary(process.text())
    assert 200 < sums["accepted"] < 100000 and sums["delivered"] == sums["accepted"]
    # The one it names is the first that did not arrive.
    assert f"the first message not published is {lines}:{sums['accepted'] + 1}" in process.text()
    assert bodies(sink) == [str(i) for i in range(1, sums["accepted"] + 1)]


def test_second_signal_ends_it_at_once(box, daemon):
    d = daemon(pool([Sink(box)]), ready=False)
    process = Process(box, "pub", pub(d, "-m", "x"))
    wait_for(lambda: d.rows("lanes") and process.state() == "S", "the message to wait")
    process.popen.send_signal(signal.SIGTERM)
    wait_for(lambda: not pending(process.pid), "the first signal to be taken")
    process.popen.send_signal(signal.SIGTERM)
    assert ended(process, 1)["unanswered"] == 1


def pending(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return any(int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd")))


def test_rate_is_kept(box, daemon, sink):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("x\n" * 400)
    result = d.publish("--rate", "400", lines)
    assert result.returncode == 0
    # 400 messages, the first at once: 399 / 400 of a second. Being slower is the machine's affair.
    assert summary(result.stderr)["seconds"] >= 0.9


def test_daemon_that_stays_away_is_told_in_the_end(box, daemon):
    d = daemon(pool([Sink(box)]), ready=False)
    process = Process(box, "pub", pub(d, "--wait", 500, "-m", "x"))
    wait_for(lambda: d.rows("lanes"), "the lane")
    d.process.kill()
    assert process.wait() == 1
    assert summary(process.text())["unanswered"] == 1


def test_progress_line_on_a_terminal_only(box, daemon, sink):
    d = daemon(pool([sink]))
    lines = box.path / "lines"
    lines.write_text("x\n" * 300)
    master, slave = pty.openpty()
    environment = dict(os.environ, TERM="xterm")
    with subprocess.Popen(pub(d, "--rate", 300, lines), stdin=subprocess.DEVNULL, stderr=slave, env=environment) as process:
        os.close(slave)
        text = b""
        while select.select([master], [], [], 20)[0]:
            try:
                piece = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            text += piece
    os.close(master)
    assert process.returncode == 0
    assert text.count(b"\r\x1b[K") >= 3 and b" accepted, " in text and b" % " in text
    assert b"accepted" in text and b"\r\x1b[K" not in d.publish(lines).stderr.encode()


def test_wrong_usage_is_status_2(box, daemon, sink):
    d = daemon(pool([sink]))
    for words, complaint in ((["-x"], "unknown option -x"), (["--timeout", "soon"], "--timeout: \"soon\""),
                             (["--ring", "1"], "16384 to 1073741824"), (["-m", "a", "b"], "exclude each other"),
                             (["-H", "=x"], "NAME=VALUE")):
        result = d.publish(*words)
        assert result.returncode == 2 and complaint in result.stderr, result.stderr
    assert not bodies(sink)
