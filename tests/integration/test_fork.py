"""Processes that fork and exec: a child never touches its parent's lanes, and no descriptor goes along."""

import collections
import subprocess

import pytest

from harness import pool, program

FORKER_S = 120


@pytest.fixture
def d(daemon, sink):
    return daemon(pool([sink]))


def arrived(sink):
    """Process -> its arrived sequences, in order."""
    numbers = collections.defaultdict(list)
    for body in sink.body_starts():
        who, _, sequence = map(int, body.split())
        numbers[who].append(sequence)
    return numbers


def test_program_that_is_started_has_no_descriptor_of_ours(box, d, sink):
    with subprocess.Popen([program("forker"), str(d.socket), "exec"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as forker:
        try:
            assert forker.stdout.readline() == "checked\n", forker.stderr.read()
            d.process.kill()
            d.start(ready=False)
            _, errors = forker.communicate("on\n", FORKER_S)
            assert forker.returncode == 0, errors
        finally:
            forker.kill()
    assert arrived(sink) == {0: list(range(30))}


@pytest.mark.sanitizers
def test_pre_forking_servers_workers_have_lanes_of_their_own(box, d, sink):
    result = box.run(program("forker"), d.socket, "prefork", deadline_s=FORKER_S)
    assert result.returncode == 0, result.stderr
    assert arrived(sink) == {0: list(range(1500)), **{worker: list(range(500)) for worker in range(1, 9)}}
    d.wait_no_lanes()


def test_threads_publish_while_another_forks(box, d, sink):
    result = box.run(program("forker"), d.socket, "threads", deadline_s=FORKER_S)
    assert result.returncode == 0, result.stderr
    published = dict(map(int, line.split()) for line in result.stdout.splitlines())
    expected = {who: list(range(count)) for who, count in published.items()}
    expected.update({3 + fork: list(range(5)) for fork in range(0, 150, 10)})
    assert arrived(sink) == expected
    d.wait_no_lanes()
