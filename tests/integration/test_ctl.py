"""tidegatectl: every command prints tables and JSON, and the two agree."""

import contextlib
import re
import socket

import pytest

from harness import Process, Sink, pool, program, wait_for
from load import Producer

COMMANDS = ("status", "pools", "brokers", "links", "lanes", "users", "stats")


def text(d, *words):
    return d.box.run(program("tidegatectl"), "-s", d.admin, *words)


@pytest.mark.sanitizers
def test_every_command_answers_in_both_forms(box, daemon, sink):
    d = daemon(pool([sink]))
    producer = Producer(box, d, count=100, lanes=2, words=["-L"])
    wait_for(lambda: producer.file.state == 4, "all delivered")
    for command in COMMANDS:
        assert d.ctl(command), command
        plain = text(d, command)
        assert plain.returncode == 0 and plain.stdout.strip(), (command, plain.stderr)


def test_rows_name_pools_brokers_links_and_lanes(box, daemon):
    sinks = [Sink(box, name).start() for name in ("a", "b")]
    d = daemon(pool(sinks, links=2), pool(sinks[:1], name="other"))
    producer = Producer(box, d, count=10, lanes=3, words=["-L"])
    wait_for(lambda: producer.file.state == 4, "all delivered")
    assert {row["name"] for row in d.rows("pools")} == {"events", "other"}
    assert len(d.rows("brokers")) == 3
    assert len(d.links(sinks[0])) == 3 and len(d.links(sinks[1])) == 2
    assert len(d.rows("lanes")) == 3
    assert all(row["pool"] == "events" for row in d.rows("lanes"))
    listed = text(d, "brokers").stdout
    assert all(sink.address in listed for sink in sinks)


def test_counts_match_the_published_messages(box, daemon, sink):
    d = daemon(pool([sink]))
    producer = Producer(box, d, count=1234, words=["-L"])
    wait_for(lambda: producer.file.state == 4, "all delivered")
    row = d.rows("pools")[0]
    assert row["delivered"] == 1234, row


def test_broken_broker_is_told_with_its_cause(box, daemon):
    good, bad = Sink(box, "good").start(), Sink(box, "bad")
    d = daemon(pool([good, bad]), ready=False)
    d.wait_ready(good)
    wait_for(lambda: "refused" in str(d.rows("brokers") + d.rows("links")).lower(), lambda:
             f"the cause: {d.rows('brokers')} {d.rows('links')}")


def test_wrong_command_and_no_daemon(box, daemon, sink):
    d = daemon(pool([sink]))
    result = text(d, "dance")
    assert result.returncode == 2 and "dance" in result.stderr
    assert d.stop() == 0
    result = text(d, "status")
    assert result.returncode == 1 and str(d.admin) in result.stderr


def test_idle_connections_do_not_lock_new_ones_out(box, daemon, sink):
    """When all connections are taken, the daemon closes the longest-idle one for a new one."""
    d = daemon(pool([sink]))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(70)]
        for s in idle:
            s.settimeout(20)
            s.connect(str(d.admin))
        assert text(d, "status").returncode == 0
        assert idle[0].recv(1) == b""  # the oldest has gone
        idle[-1].sendall(b'{"cmd":"status"}\n')
        assert b'"ok":true' in idle[-1].recv(65536)


@pytest.mark.parametrize("path, words", [("", "its path has 0 bytes"), ("x" * 200, "its path has 200 bytes"),
                                         ("tidegated.sock", "this is not an admin socket"), ("none", "there is no such socket")])
def test_wrong_socket_is_told(box, daemon, sink, path, words):
    daemon(pool([sink]))
    result = box.run(program("tidegatectl"), "-s", path, "status")
    assert result.returncode == 1 and words in result.stderr


def started(text):
    """How many daemons' first events are in it."""
    return len(re.findall(r"\bstarted\b", text))


@pytest.fixture
def following(box):
    def start(d, *words):
        out = box.path / "followed"
        with open(out, "wb") as file:
            process = Process(box, "ctl", [program("tidegatectl"), "-s", d.admin, *words], stdout=file)
        return process, out.read_text
    return start


@pytest.mark.parametrize("words", [(), ("--json",)])
@pytest.mark.parametrize("how", ["restart", "upgrade"])
def test_events_are_followed_into_the_next_daemon(box, daemon, sink, following, how, words):
    d = daemon(pool([sink]))
    process, shown = following(d, *words, "events", "-f")
    wait_for(lambda: started(shown()) == 1, "the first daemon's events")
    if how == "restart":
        d.process.kill()
        wait_for(lambda: "hung up; waiting for it or the next one" in process.text(), "it to be said")
        d.start()
    else:
        assert text(d, "upgrade").returncode == 0
    wait_for(lambda: started(shown()) == 2, lambda: f"the next daemon's events: {shown()[-2000:]}")
    assert "connected again" in process.text()
    assert process.alive()
    sink.kill()
    wait_for(lambda: "closed" in shown().lower() or "refused" in shown().lower(), "what happens later")


def test_events_of_one_daemon_are_not_shown_twice(box, daemon, sink, following):
    """It hung up, and did not end: as it does on a reader that is too slow."""
    d = daemon(pool([sink]))
    process, shown = following(d, "events", "-f")
    wait_for(lambda: started(shown()) == 1, "the events that are kept")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            for _ in range(70):
                s = stack.enter_context(socket.socket(socket.AF_UNIX))
                s.settimeout(20)
                s.connect(str(d.admin))
    assert text(d, "status").returncode == 0
    sink.kill()
    wait_for(lambda: "refused" in shown().lower(), "what happens later")
    assert started(shown()) == 1


def test_watch_goes_on_with_the_next_daemon(box, daemon, sink, following):
    d = daemon(pool([sink]))
    process, shown = following(d, "-w", "0.1", "pools")
    wait_for(lambda: shown().count("every 0.1 s") > 1, "tables")
    assert d.stop() == 0
    wait_for(lambda: "hung up; waiting for it or the next one" in process.text(), "it to be said")
    before = shown().count("every 0.1 s")
    d.start()
    wait_for(lambda: shown().count("every 0.1 s") > before + 1, "tables of the next daemon")
    assert process.alive()


def test_watch_ends_when_its_reader_does(box, daemon, sink):
    d = daemon(pool([sink]))
    result = box.run("bash", "-c", f"{program('tidegatectl')} -s {d.admin} -w 0.1 pools | head -1", deadline_s=20)
    assert result.returncode == 0 and "every 0.1 s" in result.stdout
