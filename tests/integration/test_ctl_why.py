"""`tidegatectl why` explains where messages wait and for what, `events` prints events, and long reports are whole."""

import json
import os
import pty
import re
import signal
import socket
import subprocess

import pytest

import tidegate_lib as tide
from harness import SANITIZED, Mosquitto, Process, Sink, pool, program, wait_for

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")

QUICK = {"health": {"connect_timeout_ms": 500, "probe_timeout_ms": 200, "idle_ms": 200, "probe_misses": 2,
                    "ack_timeout_ms": 400, "stall_timeout_ms": 60000},
         "breaker": {"retry_ms": 100, "retry_max_ms": 300}}


def text(d, *words):
    return d.box.run(program("tidegatectl"), "-s", d.admin, *words)


def why(d, *words):
    result = text(d, "why", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def wait_why(d, pattern, *words, deadline_s=10):
    """Waits until `why` says so, and returns what it says."""
    return wait_for(lambda: (said := why(d, *words)) and re.search(pattern, said) and said,
                    lambda: f"{pattern!r} in: {why(d, *words)}", deadline_s)


@pytest.fixture
def attach():
    """attach(daemon): a client of the library that is closed at the end."""
    clients = []

    def open_client(d, name="test"):
        clients.append(tide.Client(d.socket, name))
        return clients[-1]
    yield open_client
    for client in clients:
        client.close()


def test_nothing_waits(daemon, sink, attach):
    d = daemon(pool([sink]), pool([sink], name="quiet"))
    lane = attach(d).lane()
    lane.publish_sync(b"x")
    said = why(d)
    assert 'pool "events": nothing waits: every record is answered\n' in said
    assert 'pool "quiet": nothing waits: nobody has published to it\n' in said
    assert why(d, "1") == "lane 1: nothing waits: every record is answered\n"
    assert [row["reason"] for row in d.ctl("why")["why"]] == ["nothing", "nothing"]


def test_no_link_names_each_broker_and_its_cause(box, daemon, attach):
    refusing, vanished = Sink(box, "refusing"), Sink(box, "vanished").start()
    d = daemon(pool([refusing, vanished], message_timeout_ms=60000, **QUICK), ready=False)
    d.wait_ready(vanished)
    vanished.tell("set", "freeze", "on")
    d.wait_not_ready(vanished)
    lane = attach(d).lane(ring_bytes=1 << 20)
    for _ in range(3104):
        lane.publish(b"x")
    said = wait_why(d, r"3,104 records wait: pool \"events\" has no writable link: .*BACKOFF", "1")
    assert said.startswith("lane 1: ")
    assert re.search(rf"{refusing.address} BACKOFF [\d.]+ m?s \(connect: Connection refused, (tries again|waits)", said), said
    assert re.search(rf"{vanished.address} SUSPECT [\d.]+ m?s \(nothing read for \d+ ms", said), said
    row = d.ctl("why", "1")["why"][0]
    assert (row["lane"], row["waiting"], row["reason"], row["pid"]) == (1, 3104, "no-link", os.getpid())
    lanes = d.rows("lanes")
    assert lanes[0]["waiting"] == 3104 and lanes[0]["oldest_ms"] is not None and lanes[0]["uid"] == os.getuid()
    listed = text(d, "lanes").stdout
    assert "3,104" in listed and "waits-for-pool" in listed, listed


def test_lanes_with_the_same_cause_share_a_line(box, daemon, attach):
    d = daemon(pool([Sink(box)], **QUICK), ready=False)
    client = attach(d)
    for _ in range(6):
        client.lane().publish(b"x")
    wait_why(d, r"^lanes 1, 2, 3, 4 and 2 more: 6 records wait: pool \"events\" has no writable link")


def test_in_flight_and_window(daemon, sink, attach):
    sink.tell("set", "no-ack", "on")
    d = daemon(pool([sink], window={"messages": 10, "low": 5}))
    lane = attach(d).lane()
    for _ in range(3):
        lane.publish(b"x")
    said = wait_why(d, "3 records are in flight")
    assert re.search(rf"on link 1 to {sink.address} and wait for their answers, no answer for \d+ ms", said), said
    for _ in range(20):
        lane.publish(b"x")
    said = wait_why(d, "13 records wait", "events")
    assert re.search(r"link 1 to \S+ takes no more for now: window full: 10 of 10 messages unanswered, it takes more "
                     r"at 5, last answer [\d.]+ m?s ago", said), said


def test_watermark(daemon, sink, attach):
    d = daemon(pool([sink], watermarks={"high": 131072, "low": 65536}, window={"messages": 10000, "low": 5000}))
    sink.tell("set", "stall", "on")
    lane = attach(d).lane(ring_bytes=1 << 24)
    for _ in range(300):
        lane.publish(b"x" * 32768)
    wait_why(d, r"takes no more for now: watermark: [\d.]+ KiB unsent, high is 128.0 KiB, it takes more at 32.0 KiB")
    assert "full" in text(d, "links").stdout


def test_unread_completions(daemon, sink, attach):
    d = daemon(pool([sink]))
    lane = attach(d).lane(completions=128)
    published = 0
    with pytest.raises(tide.TideError):
        for published in range(200):
            lane.publish(b"x")
    assert published == 128
    wait_why(d, "128 completions are unread, the completion ring is full: the program must call tg_poll", "1")
    lane.collect(128)
    wait_why(d, "nothing waits", "1")


def test_wrong_credentials(box, daemon, attach):
    (box.path / "password").write_text("wrong\n")
    (box.path / "password").chmod(0o600)
    broker = Mosquitto(box, users={"u": "right"}).start()
    d = daemon(pool([broker], mqtt={"username": "u", "password_file": box.path / "password"}), ready=False)
    attach(d).lane().publish(b"x")
    wait_why(d, r"1 record waits: pool \"events\" has no writable link: \S+ BACKOFF .*check the pool's credentials")


def test_orphans_are_found(box, daemon):
    d = daemon(pool([Sink(box)], **QUICK), ready=False)
    d.publish("-m", "left behind", "--wait", "100ms")
    wait_for(lambda: text(d, "lanes", "--orphans").stdout.count("orphan") == 1, lambda: text(d, "lanes").stdout)
    assert json.loads(text(d, "lanes", "--orphans", "--json").stdout)["lanes"][0]["orphan"] is True


def test_unknown_pool_and_lane_are_named(daemon, sink):
    d = daemon(pool([sink]))
    for words, said in ((("why", "nope"), 'pool "nope" does not exist; there are: events'),
                        (("lanes", "nope"), 'pool "nope" does not exist; there are: events'),
                        (("why", "7"), "lane 7 does not exist")):
        result = text(d, *words)
        assert result.returncode == 1 and said in result.stderr and not result.stdout, result


def test_wrong_usage_is_told_from_failure(daemon, sink):
    d = daemon(pool([sink]))
    for words in ((), ("links", "a", "b"), ("status", "x"), ("pools", "--orphans"), ("links", "-f"),
                  ("events", "-w", "1"), ("links", "-w", "0"), ("--nonsense",), ("links", "--json", "-w", "1")):
        result = text(d, *words)
        assert result.returncode == 2 and result.stderr.startswith("tidegatectl: "), (words, result)
    for command in ("status", "pools", "brokers", "links", "lanes", "stats", "why", "events"):
        result = text(d, command, "--help")
        assert result.returncode == 0 and f" {command}" in result.stdout


def test_long_report_is_whole_and_pages_when_asked(daemon, sink, attach):
    d = daemon(pool([sink]), pool([sink], name="other"))
    client = attach(d)
    for number in range(300):
        client.lane(pool=("events", "other")[number % 2], ring_bytes=16384)
    numbers = [row["id"] for row in d.ctl("lanes")["lanes"]]
    assert numbers == list(range(1, 301))
    assert [row["id"] for row in d.ctl("lanes", "other")["lanes"]] == list(range(2, 301, 2))
    assert len(text(d, "lanes").stdout.splitlines()) == 301
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(d.admin))
        lines = s.makefile("rwb")
        # Ahead of the answers, to see that they are not mixed up.
        lines.write(b'{"cmd":"lanes","max":200}\n{"cmd":"lanes","max":200,"from":201}\n{"cmd":"lanes"}\n{"cmd":"status"}\n')
        lines.flush()
        first, second, all_of_them, status = (json.loads(lines.readline()) for _ in range(4))
    assert len(first["lanes"]) == 128 and first["next"] == 129
    assert [row["id"] for row in second["lanes"]] == list(range(201, 301)) and "next" not in second
    assert len(all_of_them["lanes"]) == 300 and "next" not in all_of_them
    assert status["status"]["lanes"] == 300


def test_strange_program_name_is_harmless(daemon, sink, attach):
    d = daemon(pool([sink]))
    attach(d, "é" * 16).lane()  # the library keeps 31 bytes: half a character at the end
    attach(d, "\x1b[2J\x07evil").lane()
    names = [row["name"] for row in d.ctl("lanes")["lanes"]]
    assert names[0].startswith("é" * 15) and names[1] == "?[2J?evil"
    assert "\x1b" not in text(d, "lanes").stdout


def test_events_report_changes(box, daemon, sink):
    d = daemon(pool([sink], **QUICK), ready=False)
    d.wait_ready()
    answer = d.ctl("events")
    lines = [event["line"] for event in answer["events"]]
    assert any("event=started" in line for line in lines)
    assert any("event=link_state" in line and "to=probing" in line for line in lines), lines
    assert [event["seq"] for event in answer["events"]] == list(range(1, answer["seq"]))
    assert len(d.ctl("events", "--max", "2")["events"]) == 2
    follower = Process(box, "follower", [program("tidegatectl"), "-s", d.admin, "events", "--follow", "--since", answer["seq"]])
    assert "to=probing" not in follower.text()
    sink.kill()
    wait_for(lambda: "to=backoff" in follower.text() and "event=breaker_open" in follower.text(), follower.text)
    sink.start()
    wait_for(lambda: "event=breaker_closed" in follower.text() and "to=ready" in follower.text(), follower.text)
    numbers = [int(line.split()[0]) for line in follower.text().splitlines()]
    assert numbers == list(range(answer["seq"], answer["seq"] + len(numbers)))
    assert d.stop() == 0
    wait_for(lambda: "hung up" in follower.text(), "the follower to notice")
    assert follower.alive()  # it waits for the next daemon


def on_terminal(d, *words, environment=()):
    """Its output on a terminal of 100 columns."""
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([program("tidegatectl"), "-s", d.admin, *words], stdout=slave, stderr=subprocess.PIPE,
                               env={**os.environ, "TERM": "xterm", **dict(environment)})
    os.close(slave)
    said = b""
    try:
        while block := os.read(master, 65536):
            said += block
            if said.count(b"\x1b[H\x1b[2J") > 2:
                process.send_signal(signal.SIGINT)
    except OSError:  # the terminal's other end is closed
        pass
    process.wait()
    process.stderr.close()
    os.close(master)
    return said.decode()


def test_colour_and_width_are_a_terminals(box, daemon, sink):
    d = daemon(pool([sink, Sink(box, "absent")]), ready=False)
    d.wait_ready(sink)
    wait_for(lambda: "refused" in text(d, "links").stdout, "the cause")
    coloured = on_terminal(d, "links")
    assert "\x1b[32mready" in coloured
    plain = on_terminal(d, "links", environment={"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert all(len(line.rstrip("\r")) <= 100 for line in plain.split("\n")), plain
    assert "\x1b" not in text(d, "links").stdout
    assert on_terminal(d, "status", "--json").count("\n") > 5
    assert text(d, "status", "--json").stdout.count("\n") == 1


def test_watch_shows_rates(box, daemon, sink, attach):
    d = daemon(pool([sink]))
    attach(d).lane().publish_sync(b"x")
    for command in ("status", "pools", "brokers", "links", "lanes", "stats", "why"):
        said = on_terminal(d, command, "-w", "0.1")
        assert said.count(f"tidegatectl {command}, every 0.1 s") >= 2, said
    assert "0 B/s" in on_terminal(d, "pools", "-w", "0.1")


def test_reader_that_goes_away_is_no_error_of_the_daemon(daemon, sink):
    d = daemon(pool([sink]))
    for request in (b'{"cmd":"lanes"}\n' * 50, b'{"cmd":"events","follow":true}\n', b"{", b"[]\n", b"\xff\xfe\n", b"\0" * 100):
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(d.admin))
            s.sendall(request)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(d.admin))
        lines = s.makefile("rwb")
        for request, said in ((b"[]\n", "is not known; there are: status"), (b"nonsense\n", "not a JSON object"),
                              (b'{"cmd":"links","pol":"x"}\n', 'member "pol" is not known'),
                              (b'{"cmd":"links","from":-1}\n', "from: a whole number"),
                              (b'{"cmd":"lanes","orphans":1}\n', "orphans: true or false")):
            lines.write(request)
            lines.flush()
            answer = json.loads(lines.readline())
            assert not answer["ok"] and said in answer["error"], answer
        s.sendall(b"x" * 65536)
        assert "longer than 65536" in json.loads(lines.readline())["error"]
        assert lines.readline() == b""
    assert d.ctl("status")["ok"]
