"""Thousands of SIGKILLs of the daemon at random instants, under load from 8 producers, through real brokers.

At each kill the test records from outside every message that a producer had published and that had no completion. In
the end every accepted message has exactly one completion
and has arrived; one whose completion tells of a second attempt was under way at a kill; and what the
subscriber has twice is one of those. JetStream knows them again by their id and has nothing twice.

200 kills in all, or 10,000 with TG_FULL=1 (tools/check --faults)."""

import bisect
import os
import random
import signal
import subprocess
import time

import pytest

from harness import FULL, Mosquitto, have, pool, program, wait_for
from harness_nats import NatsServer, StreamReader
from load import RESENT, Producer
from test_nats import nats_pool

KILLS = 5000 if FULL else 100
PROCESSES = 8
LANES = 2
RATE = 800  # messages a second of each
ROOM = 400  # messages for each kill and lane, at most
BATCH = 8
UNDER_LOAD = 0.8  # the others fall into the start and the taking over
PER_KILL = 250    # messages accepted between its start, or the first answer, and a kill, at most


class Mortal:
    """A daemon that is killed and started again, by its own pid; all write into one log."""

    def __init__(self, box, daemon):
        self.argv = [program("tidegated"), "-c", daemon.config]
        self.log = open(box.path / "mortal.log", "ab")
        self.popen = daemon.process.popen
        box.at_end(self.kill)

    def kill(self):
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait()

    def start(self):
        self.popen = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)


class UnderWay:
    """For each lane and kill: from the oldest message without an answer before it to the youngest published after it."""

    def __init__(self, producers):
        self.lanes = [(p, lane) for p in producers for lane in range(LANES)]
        self.lows = [[0] for _ in self.lanes]
        self.highs = [[0] for _ in self.lanes]

    def before(self):
        for (producer, lane), lows in zip(self.lanes, self.lows):
            lows.append(producer.file.first_unanswered(lane, lows[-1]))

    def after(self):
        for (producer, lane), highs in zip(self.lanes, self.highs):
            highs.append(producer.file.accepted(lane) + BATCH)  # published, and not yet counted

    def has(self, number, sequence):
        kill = bisect.bisect_right(self.highs[number], sequence)
        return kill < len(self.highs[number]) and self.lows[number][kill] <= sequence


class Tally:
    """How often each message arrived, a byte for each: millions fit."""

    def __init__(self, producers):
        self.lanes = {(p.number, lane): bytearray(p.count) for p in producers for lane in range(LANES)}
        self.highest = dict.fromkeys(self.lanes, -1)
        self.damaged = self.disorder = 0

    def take(self, producer, lane, sequence, intact):
        times = self.lanes[producer, lane]
        if times[sequence] == 0:  # repeats may come late, first arrivals keep their lane's order
            self.disorder += sequence < self.highest[producer, lane]
            self.highest[producer, lane] = sequence
        times[sequence] += 1
        self.damaged += not intact


class TalliedReader(StreamReader):
    def __init__(self, server, tally):
        self.tally = tally
        super().__init__(server)

    def take(self, body):
        super().take(body)
        one = self.list.pop()
        self.tally.take(one.producer, one.lane, one.sequence, one.intact)


class ThroughMosquitto:
    twice = True

    def __init__(self, box):
        self.broker = Mosquitto(box).start()
        self.subscriber = self.broker.subscriber()
        self.pool = pool([self.broker])

    def tally(self, tally, accepted):
        wait_for(lambda: self.subscriber.count() >= accepted, "all of it at the subscriber", 60)
        # Duplicates may still arrive: the end marker is the last message sent.
        last = self.subscriber.process
        subprocess.run(["mosquitto_pub", "-h", "127.0.0.1", "-p", str(self.broker.port), "-q", "1", "-t", "end", "-m", "end"], check=True)
        wait_for(lambda: self.subscriber.file.strangers() > 0 or not last.alive(), "the end at the subscriber", 60)
        file = self.subscriber.file
        head, size = 32, file.ARRIVAL.size
        for producer, lane, sequence, _, intact, _, _ in file.ARRIVAL.iter_unpack(
                file.map[head:head + file.count() * size]):
            tally.take(producer, lane, sequence, intact)


class ThroughJetStream:
    twice = False

    def __init__(self, box):
        if not have("nats-server"):
            pytest.skip("needs nats-server")
        self.broker = NatsServer(box).start().stream()
        self.pool = nats_pool([self.broker])

    def tally(self, tally, _accepted):
        TalliedReader(self.broker, tally)


def accepted(producers):
    return sum(p.file.accepted() for p in producers)


def completed(producers):
    return sum(p.file.completed() for p in producers)


def kill_many(mortal, producers, dice):
    under_way = UnderWay(producers)

    def wait_progress(count, what):
        goal = count(producers) + what
        wait_for(lambda: count(producers) >= goal or not all(p.process.alive() for p in producers), "progress", 60, 0.0005)

    for _ in range(KILLS):
        if dice.random() < UNDER_LOAD:
            wait_progress(completed, 1)
        wait_progress(accepted, dice.randrange(1, PER_KILL))
        under_way.before()
        mortal.kill()
        under_way.after()
        mortal.start()
    return under_way


def check(producers, under_way, tally, twice):
    resent = duplicates = 0
    for number, (producer, lane) in enumerate(under_way.lanes):
        name = f"{producer.name} lane {lane}"
        answers = producer.file.answers(lane)
        arrived = tally.lanes[producer.number, lane]
        assert set(answers) <= {1, 1 | RESENT}, f"{name}: {set(answers)}"
        lost = arrived.find(b"\0", 0, len(answers))
        assert lost < 0, f"{name}: message {lost} never arrived"
        assert not any(arrived[len(answers):]), f"{name}: more arrived than was accepted"
        for sequence, answer in enumerate(answers):
            if answer & RESENT:
                resent += 1
                assert under_way.has(number, sequence), f"{name}: message {sequence} was under way at no kill"
            if arrived[sequence] > 1:
                duplicates += arrived[sequence] - 1
                assert answer & RESENT, f"{name}: message {sequence} arrived twice and had one attempt"
    assert not tally.damaged and not tally.disorder
    assert twice or duplicates == 0
    assert resent > 0, "nothing was under way at any kill"
    return resent, duplicates


@pytest.mark.long
@pytest.mark.parametrize("through", [ThroughMosquitto, ThroughJetStream])
def test_killed_daemon_loses_nothing_completes_once_and_repeats_only_what_was_under_way(box, daemon, through):
    way = through(box)
    d = daemon(way.pool)
    limit_s = 60 + KILLS // 2
    producers = [Producer(box, d, number=n, count=KILLS * ROOM, lanes=LANES, rate=RATE, low=10, high=200, batch=BATCH,
                          topic="load.t", deadline_s=limit_s) for n in range(1, PROCESSES + 1)]
    for producer in producers:
        producer.wait_accepted(1)
    start = time.monotonic()
    mortal = Mortal(box, d)
    under_way = kill_many(mortal, producers, random.Random(KILLS))
    took = time.monotonic() - start
    for producer in producers:
        assert producer.finish_early() == {"delivered": producer.file.accepted()}
    tally = Tally(producers)
    way.tally(tally, accepted(producers))
    resent, duplicates = check(producers, under_way, tally, way.twice)
    print(f"{through.__name__}: {KILLS} kills, {took / KILLS * 1000:.1f} ms each; {accepted(producers)} messages, lost 0, "
          f"{resent} with a second attempt, {duplicates} of them twice at the subscriber; load {os.getloadavg()[0]:.1f}")
