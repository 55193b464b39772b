"""The daemon killed with SIGKILL at random instants under load, and started again: nothing accepted is
lost, every message has exactly one completion (Producer.finish checks that), and what arrives twice was
under way at a kill.

10 kills, or 1,000 with TG_FULL=1 (tools/check --faults); test_daemon_death_many.py has the thousands."""

import os
import random
import re
import signal

import pytest

from harness import BUILD, FULL, ROOT, Mosquitto, Sink, pool, wait_for
from load import Producer, check_all_arrived, wait_all_arrived
from test_failover import accepted

KILLS = 1000 if FULL else 10
PROCESSES = 8 if FULL else 4
PER_KILL = 400  # messages of each producer between two kills


def kill_and_restart(d, producers, dice, kills):
    for _ in range(kills):
        goal = accepted(producers) + dice.randrange(1, PER_KILL * len(producers))
        wait_for(lambda: accepted(producers) >= goal or not any(p.process.alive() for p in producers), "progress",
                 60, 0.001)
        d.process.kill()
        d.start(ready=False)


def start(box, d, count, deadline_s, **options):
    options = {"low": 10, "high": 3000, "batch": 8, "lanes": 2, **options}
    producers = [Producer(box, d, number=n, count=count, deadline_s=deadline_s, **options) for n in range(1, PROCESSES + 1)]
    for producer in producers:
        producer.wait_accepted(1)
    return producers


@pytest.mark.long
@pytest.mark.sanitizers
def test_killed_daemon_loses_nothing_and_completes_once(box, daemon):
    dice = random.Random(KILLS)
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    producers = start(box, d, KILLS * PER_KILL, 120 + KILLS)
    kill_and_restart(d, producers, dice, KILLS)
    for producer in producers:
        assert producer.finish(120 + KILLS) == {"delivered": producer.count * producer.lanes}
    check_all_arrived(producers, sink)
    assert d.stop() == 0


@pytest.mark.long
def test_killed_daemon_loses_nothing_through_mosquitto(box, daemon):
    dice = random.Random(3)
    brokers = [Mosquitto(box, name=f"mosquitto-{n}").start() for n in (1, 2)]
    subscribers = [broker.subscriber() for broker in brokers]
    d = daemon(pool(brokers))
    producers = start(box, d, 5 * PER_KILL, 90)
    kill_and_restart(d, producers, dice, 5)
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * producer.lanes}
    wait_all_arrived(producers, *subscribers)
    assert d.stop() == 0


POINTS = re.findall(r"^X\((\w+),", (ROOT / "daemon" / "base" / "inject.def").read_text(), re.MULTILINE)
PER_PAIR = 400  # messages of each producer
INJECTION = "-DTG_INJECTION" in (BUILD / "Makefile").read_text()


def die_at(d, wish, certain):
    """Starts a daemon that dies at the wish, or is killed where the wish is not certain to come true."""
    d.launch(env=dict(os.environ, TIDEGATED_INJECT=wish))
    try:
        wait_for(lambda: not d.process.alive(), f"{wish} to end it", 20 if certain else 2)
    except AssertionError:
        assert not certain
        d.process.kill()
        return False
    assert d.process.popen.returncode == -signal.SIGKILL, d.process.text()
    return True


@pytest.mark.skipif(not INJECTION, reason="a build without --enable-injection")
@pytest.mark.sanitizers
@pytest.mark.parametrize("point", POINTS)
def test_daemon_may_die_at_any_store(box, daemon, point):
    """Killed at a point; and again at every point that recovery passes, and those of the work after it."""
    sink = Sink(box, options=["--ack-delay", "30"]).start()  # so that some are always under way
    d = daemon(pool([sink]))
    producers = start(box, d, 60 * PER_PAIR, 240, rate=PER_PAIR)
    d.process.kill()
    dice = random.Random(point)
    assert die_at(d, f"{point}:1", True)
    pairs = 0
    for second in POINTS if FULL else dice.sample(POINTS, 3):
        # The first finds what the last one left; the second is started on what the first one left.
        assert die_at(d, f"{point}:1", True) and die_at(d, f"{second}:1", True)
        pairs += 1
        die_at(d, f"{point}:{dice.randrange(2, 400)}", False)
    d.start(ready=False)
    for producer in producers:
        assert set(producer.finish_early()) == {"delivered"}
    check_all_arrived(producers, sink)
    assert d.stop() == 0
    assert pairs == (len(POINTS) if FULL else 3)


def test_messages_perhaps_sent_are_reported_where_nothing_is_sent_twice(box, daemon):
    """on_failure = "report": at most once, over a daemon's death, too."""
    sink = Sink(box, options=["--ack-delay", "30000"]).start()
    d = daemon(pool([sink], on_failure="report"))
    producer = Producer(box, d, number=1, count=50, batch=8)
    wait_for(lambda: len(sink.arrivals()) == 50, "all sent")
    d.process.kill()
    d.start(ready=False)
    assert producer.finish() == {"unknown": 50}
    assert len(sink.arrivals()) == 50


def test_producer_waits_for_its_daemon_in_its_sleep(box, daemon, sink):
    """No message is needed to notice: one that only waits comes back by itself."""
    d = daemon(pool([sink]))
    sink.tell("set", "no-ack", "on")
    producer = Producer(box, d, number=1, count=20)
    wait_for(lambda: len(sink.arrivals()) == 20, "all sent")
    d.process.kill()
    sink.tell("set", "no-ack", "off")
    d.start(ready=False)
    assert producer.finish() == {"delivered": 20}


def test_restarted_daemon_without_the_pool_says_so(box, daemon, sink):
    d = daemon(pool([sink]))
    sink.tell("set", "no-ack", "on")
    producer = Producer(box, d, number=1, count=20)
    wait_for(lambda: len(sink.arrivals()) == 20, "all sent")
    d.process.kill()
    d.config.write_text(d.config.read_text().replace('"events"', '"renamed"'))
    d.start(ready=False)
    assert producer.process.wait() == 3
    assert "renamed" in d.process.text() or "does not take it back" in producer.process.text()
