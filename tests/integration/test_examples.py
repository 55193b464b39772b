"""libclient/examples: each program runs against the sink, and the sink records what the program says it published."""

import os
import subprocess

import pytest

from harness import BUILD, Sink, pool, wait_for

pytestmark = pytest.mark.sanitizers
EXAMPLES = BUILD / "libclient" / "examples"


@pytest.fixture
def example(box, daemon, sink):
    """example(NAME, argument…): runs a program to its end with the daemon's socket in its environment."""
    socket = daemon(pool([sink])).socket

    def run(name, *arguments, **options):
        return box.run(EXAMPLES / name, "events", "t/example", *arguments,
                       env={**os.environ, "TIDEGATE_SOCKET": str(socket)}, **options)
    return run


def bodies(sink):
    return [arrival["body"] for arrival in sink.arrivals()]


def arrived(sink, count):
    wait_for(lambda: len(bodies(sink)) >= count, lambda: f"{count} messages in {sink.record}: {len(bodies(sink))}")
    return bodies(sink)


def test_blocking_publishes_one_message(example, sink):
    result = example("blocking", "hello")
    assert (result.returncode, result.stdout) == (0, "delivered after 1 attempt(s)\n"), result.stderr
    assert arrived(sink, 1) == ["hello"]


def test_blocking_reports_a_rejection_in_the_brokers_words(box, daemon):
    sink = Sink(box, options=["--reject", "135", "--reason", "not for you"]).start()
    socket = daemon(pool([sink])).socket
    result = box.run(EXAMPLES / "blocking", "events", "t/example", "hello", env={**os.environ, "TIDEGATE_SOCKET": str(socket)})
    assert result.returncode == 1 and result.stdout.startswith("rejected after 1 attempt(s)\ncode 135: not authorized: not for you"), result


@pytest.mark.parametrize("lines", [0, 3, 20000])
def test_event_loop_publishes_every_line(box, example, sink, lines):
    text = [f"line {number}" for number in range(lines)]
    path = box.path / "lines"
    path.write_text("".join(line + "\n" for line in text))
    with open(path) as file:
        result = example("event_loop", stdin=file)
    assert (result.returncode, result.stdout) == (0, f"{lines} delivered\n" if lines else ""), result.stderr
    assert arrived(sink, lines) == text


def test_event_loop_takes_a_pipe_and_a_last_line_without_end(example, sink):
    with subprocess.Popen(["printf", "one\\ntwo"], stdout=subprocess.PIPE) as pipe:
        result = example("event_loop", stdin=pipe.stdout)
    assert (result.returncode, result.stdout) == (0, "2 delivered\n"), result.stderr
    assert arrived(sink, 2) == ["one", "two"]


def test_batch_delivers_more_than_a_ring_holds(example, sink):
    result = example("batch", "20000")
    assert (result.returncode, result.stdout) == (0, "20000 of 20000 delivered\n"), result.stderr
    assert arrived(sink, 20000) == [f"number {number}" for number in range(20000)]


def test_prefork_workers_publish_on_their_own(example, sink):
    result = example("prefork", "4", "5")
    assert (result.returncode, result.stdout) == (0, "4 workers, 0 failed\n"), result.stderr
    got = arrived(sink, 22)
    assert got[0] == "started" and got[-1] == "stopped"
    assert sorted(got[1:-1]) == sorted(f"worker {worker} request {i}" for worker in range(4) for i in range(5))


@pytest.mark.parametrize("name", ["blocking", "event_loop", "batch", "prefork"])
def test_an_example_without_a_daemon_fails_with_a_reason(box, name):
    more = {"blocking": ["hello"], "batch": ["1"], "prefork": ["1", "1"]}.get(name, [])
    result = box.run(EXAMPLES / name, "events", "t", *more,
                     env={**os.environ, "TIDEGATE_SOCKET": str(box.path / "absent.sock")})
    assert result.returncode == 1 and "absent.sock" in result.stderr, result
