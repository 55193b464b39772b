"""A library and a daemon one version apart: refused with both versions named, and nothing is ever misread.

producer_next and tidegated_next are this library and this daemon, built with the next LANE_ABI."""

import os
import shutil

import pytest

from harness import Process, pool, program, wait_for
from load import Producer, check_all_arrived
from test_upgrade import Upgraded


def start(d, box, binary, name):
    d.process = Process(box, name, [binary, "-c", d.config])
    d.process.orderly = True
    wait_for(lambda: not d.process.alive() or d.answers(), f"{name} to answer")
    assert d.process.alive(), d.process.text()
    return d


@pytest.fixture
def next_daemon(box, daemon, sink):
    d = daemon(pool([sink]))
    d.stop()
    return start(d, box, program("tidegated_next"), "tidegated-next")


def next_producer(box, d):
    record = box.path / "next.record"
    return Process(box, "producer-next", [program("producer_next"), "-s", d.socket, "-p", "events", "-o", record, "-n", "10"])


def check_refused(process, words):
    assert process.wait(30) == 3, process.text()
    text = process.text()
    assert words in text, text


def test_new_library_and_old_daemon(box, daemon, sink):
    d = daemon(pool([sink]))
    check_refused(next_producer(box, d), "tidegated speaks ABI 1, this library ABI 2")
    assert Producer(box, d, number=1, count=50).finish() == {"delivered": 50}
    assert d.stop() == 0


def test_old_library_and_new_daemon(box, next_daemon):
    old = Producer(box, next_daemon, number=1, count=50)
    check_refused(old.process, "tidegated speaks ABI 2, this library ABI 1")
    fresh = next_producer(box, next_daemon)
    assert fresh.wait(30) == 0, fresh.text()
    assert next_daemon.stop() == 0


def test_lane_is_not_handed_back_to_a_daemon_of_another_version(box, daemon, sink):
    """Its producer is told; nothing of its ring is sent by who cannot read it; and what it had not been answered for
    is not called finished."""
    d = daemon(pool([sink]))
    sink.tell("set", "no-ack", "on")
    held = Producer(box, d, number=1, count=20)
    wait_for(lambda: len(sink.arrivals()) == 20, "all sent")
    d.process.kill()
    sink.tell("set", "no-ack", "off")
    start(d, box, program("tidegated_next"), "tidegated-next")
    check_refused(held.process, "does not take it back: the library and tidegated speak different ABI versions")
    assert held.file.completed() == 0
    d.wait_ready()
    assert len(sink.arrivals()) == 20 and not d.rows("lanes")
    fresh = next_producer(box, d)
    assert fresh.wait(30) == 0, fresh.text()
    assert d.stop() == 0


@pytest.mark.parametrize("first", ["tidegated", "tidegated_next"])
def test_daemon_of_another_version_does_not_take_over(box, daemon, sink, first):
    second = {"tidegated": "tidegated_next", "tidegated_next": "tidegated"}[first]
    d = daemon(pool([sink]))
    d.stop()
    installed = box.path / "installed"
    shutil.copy(program(first), installed)
    start(d, box, installed, first)
    serving = Upgraded(box, d)
    pid = serving.pid()
    producers = [Producer(box, d, number=1, count=4000, batch=8, rate=4000)] if first == "tidegated" else []
    for producer in producers:
        producer.wait_accepted(1)
    shutil.copy(program(second), box.path / "new")
    os.rename(box.path / "new", installed)
    result = serving.upgrade()
    assert result.returncode == 1 and "did not take over" in result.stderr, result.stderr
    assert serving.pid() == pid and "another version" in d.process.text()
    for producer in producers:
        assert producer.finish() == {"delivered": 4000}
        assert producer.file.resent == 0
    check_all_arrived(producers, sink)
    if not producers:
        fresh = next_producer(box, d)
        assert fresh.wait(30) == 0, fresh.text()
    assert d.stop() == 0
