"""Producers killed with SIGKILL at random instants. The daemon never falters, everything committed is
delivered, and memory and descriptors return to where they were.

200 kills, or 10,000 with TG_FULL=1 (tools/check --faults)."""

import random

import pytest

from harness import FULL, SANITIZED, Sink, pool, wait_for
from load import Producer, check_all_arrived

KILLS = 10000 if FULL else 200
AT_ONCE = 4


def shared_kib():
    for line in open("/proc/meminfo"):
        if line.startswith("Shmem:"):
            return int(line.split()[1])


@pytest.mark.long
@pytest.mark.sanitizers
def test_killed_producers_leave_nothing_behind_and_lose_nothing(box, daemon):
    dice = random.Random(KILLS)
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    # One that lives through it all, as every neighbour should.
    witness = Producer(box, d, number=1, count=KILLS * 20, rate=500, deadline_s=KILLS * 0.2 + 60)
    witness.wait_accepted(10)
    warm_up(box, d, dice)
    descriptors, memory = d.process.descriptors(), d.process.rss_kib()
    killed = []
    while len(killed) < KILLS:
        batch = [Producer(box, d, number=len(killed) + n + 2, count=100000, lanes=dice.choice((1, 1, 3)), low=10, high=3000,
                          batch=dice.choice((1, 1, 7, 64)), rate=20000) for n in range(min(AT_ONCE, KILLS - len(killed)))]
        # At any instant from its first breath on.
        for producer in batch:
            goal = dice.choice((0, 0, 1, dice.randrange(1, 2000)))
            wait_for(lambda p=producer, goal=goal: p.file.accepted() >= goal, "something accepted", interval_s=0.001)
        for producer in batch:
            producer.process.kill()
            assert d.process.alive(), d.process.text()
        killed += batch
    witness.process.kill()
    d.wait_no_lanes(60)
    wait_for(lambda: d.process.descriptors() <= descriptors, lambda:
             f"{descriptors} descriptors, {d.process.descriptors()} are open")
    if not SANITIZED:
        # The allocator keeps some; per kill there is nothing.
        wait_for(lambda: d.process.rss_kib() <= memory + 8192, lambda: f"{memory} KiB at most, {d.process.rss_kib()} are in use")
    check_all_arrived([witness, *killed], sink)
    assert d.stop() == 0


def warm_up(box, d, dice):
    """One-time allocations of the daemon do not count as the cost of a kill."""
    first = [Producer(box, d, number=900000 + n, count=2000, lanes=3, low=10, high=3000, batch=64) for n in range(AT_ONCE)]
    for producer in first:
        producer.finish()
    wait_for(lambda: len(d.rows("lanes")) == 1, "only the witness's lane left", 20)


@pytest.mark.sanitizers
def test_lane_that_is_never_read_stops_only_itself(box, daemon):
    """A stopped producer takes no completions: its lane fills, and the others never notice."""
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    lazy = Producer(box, d, number=1, count=100000, batch=64)
    lazy.wait_accepted(100)
    lazy.process.freeze()
    busy = [Producer(box, d, number=n, count=5000, batch=8) for n in (2, 3)]
    for producer in busy:
        assert producer.finish() == {"delivered": 5000}
    lazy.process.thaw()
    assert lazy.finish() == {"delivered": 100000}
    check_all_arrived([lazy, *busy], sink)
