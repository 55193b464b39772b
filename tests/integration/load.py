"""The load programs (producer.c, subscriber.c) and their record files (record.h)."""

import collections
import mmap
import signal
import struct

from harness import PATIENCE, Process, program, wait_for

LANES = 64
BUCKETS = 1024
RESENT = 0x80  # record.h
OUTCOMES = ("none", "delivered", "sent", "rejected", "expired", "unknown", "cancelled", "?")
Arrival = collections.namedtuple("Arrival", "producer lane sequence body_len intact duplicate retained")


class MappedFile:
    def __init__(self, path):
        self.path = path
        self.map = None

    def read(self, offset, layout):
        if self.map is None:
            if not self.path.exists() or not self.path.stat().st_size:
                return (0,) * len(struct.unpack(layout, bytes(struct.calcsize(layout))))
            with open(self.path, "rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return struct.unpack_from(layout, self.map, offset)


class SubscriberFile(MappedFile):
    HEAD = "<4Q"
    ARRIVAL = struct.Struct("<IIQIBBBx")

    def count(self):
        return self.read(0, self.HEAD)[0]

    def subscribed(self):
        return self.read(0, self.HEAD)[1]

    def strangers(self):
        return self.read(0, self.HEAD)[3]

    def arrivals(self):
        head = struct.calcsize(self.HEAD)
        count = self.count()
        return [Arrival(*fields)
                for fields in self.ARRIVAL.iter_unpack(self.map[head:head + count * self.ARRIVAL.size])]


class ProducerFile(MappedFile):
    HEAD = "<5Q8Q2Q"
    TIMES = struct.calcsize(HEAD) + LANES * 16

    def __init__(self, path, lanes, count):
        super().__init__(path)
        self.lanes = lanes
        self.each = count

    def _head(self):
        return self.read(0, self.HEAD)

    state = property(lambda self: self._head()[0])
    again = property(lambda self: self._head()[1])
    doubles = property(lambda self: self._head()[2])
    strangers = property(lambda self: self._head()[3])
    resent = property(lambda self: self._head()[4])
    error = property(lambda self: self._head()[13])
    elapsed_max_us = property(lambda self: self._head()[14])

    def outcomes(self):
        return {name: number for name, number in zip(OUTCOMES, self._head()[5:13]) if number}

    def accepted(self, lane=None):
        return sum(self._lane(one)[0] for one in self._which(lane))

    def completed(self, lane=None):
        return sum(self._lane(one)[1] for one in self._which(lane))

    def outcome(self, lane, sequence):
        return OUTCOMES[self.answer(lane, sequence) & ~RESENT]

    def answer(self, lane, sequence):
        """The byte of a message: 0, or its outcome, with RESENT."""
        return self.read(self.answers_at(lane) + sequence, "<B")[0]

    def answers(self, lane):
        """The bytes of a lane's accepted messages."""
        start = self.answers_at(lane)
        return self.map[start:start + self.accepted(lane)]

    def first_unanswered(self, lane, start=0):
        """The first message from `start` on that has no completion yet."""
        base = self.answers_at(lane)
        return self.map.find(b"\0", base + start) - base

    def answers_at(self, lane):
        return self.TIMES + 8 + 4 * BUCKETS * 8 + lane * self.each

    def phase(self, number):
        """From now on times are counted as this phase's, 0 or 1."""
        with open(self.path, "r+b") as file:
            file.seek(self.TIMES)
            file.write(struct.pack("<Q", number))

    def times(self, phase, answers):
        """A histogram of the calls' (or answers') times."""
        return self.read(self.TIMES + 8 + (2 * phase + answers) * BUCKETS * 8, f"<{BUCKETS}Q")

    def _which(self, lane):
        return range(self.lanes) if lane is None else [lane]

    def _lane(self, lane):
        return self.read(struct.calcsize(self.HEAD) + lane * 16, "<2Q")


def percentile(producers, phase, answers, share):
    """The microseconds within which this share of all producers' calls (or answers) was done, and their number."""
    counts = [sum(column) for column in zip(*(p.file.times(phase, answers) for p in producers))]
    total, seen = sum(counts), 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= share * total:
            power, part = divmod(bucket, 16)
            return (bucket if power == 0 else (17 + part) << (power - 1)) / 1000, total
    return 0, total


class Producer:
    """One producer process. Words beyond these are producer.c's options."""

    def __init__(self, box, daemon, number=1, count=1000, lanes=1, rate=0, low=64, high=None, batch=1, ring=0,
                 deadline_s=60, pool="events", topic="load", words=(), suffix=""):
        path = box.path / f"producer-{number}{suffix}.record"
        self.number = number
        self.count = count
        self.lanes = lanes
        self.name = f"producer-{number}{suffix}"
        self.file = ProducerFile(path, lanes, count)
        self.process = Process(box, self.name, [
            program("producer"), "-s", daemon.socket, "-p", pool, "-t", topic, "-o", path, "-i", number, "-l", lanes,
            "-n", count, "-r", rate, "-m", low, "-M", high or low, "-b", batch, "-R", ring, "-S", number,
            "-w", int(deadline_s * 1000 * PATIENCE), *words])

    def wait_accepted(self, count, deadline_s=30):
        wait_for(lambda: self.file.accepted() >= count or not self.process.alive(),
                 lambda: f"{self.name} to have {count} accepted, has {self.file.accepted()}", deadline_s, 0.002)
        assert self.file.accepted() >= count, f"{self.name} ended early: {self.process.text()}"

    def finish(self, deadline_s=90, early=False):
        """Waits for its end; every message accepted must have exactly one completion."""
        status = self.process.wait(deadline_s)
        assert status == 0, f"{self.name} ended with {status}: {self.process.text()}"
        assert self.file.doubles == 0 and self.file.strangers == 0, \
            f"{self.name}: {self.file.doubles} double and {self.file.strangers} strange completions"
        assert self.file.completed() == self.file.accepted() 
        assert early or self.file.accepted() == self.count * self.lanes
        return self.file.outcomes()

    def finish_early(self, deadline_s=90):
        """The same for one that was told to stop publishing (SIGUSR1)."""
        self.process.popen.send_signal(signal.SIGUSR1)
        return self.finish(deadline_s, early=True)


class Arrivals:
    """The messages that reached the brokers, from subscribers or sinks, by lane."""

    def __init__(self):
        self.times = collections.Counter()  # (producer, lane, sequence) -> how often
        self.damaged = 0
        self.disorder = []

    def add_subscriber(self, subscriber):
        self._add(subscriber.name, ((a.producer, a.lane, a.sequence) for a in subscriber.arrivals()))
        self.damaged += sum(not a.intact for a in subscriber.arrivals())
        self.damaged += subscriber.file.strangers()
        return self

    def add_sink(self, sink):
        def numbers():
            for body in sink.body_starts():
                try:
                    producer, lane, sequence = map(int, body.split(" ", 3)[:3])
                except ValueError:
                    continue  # not a load program's: the hostile client may publish anything
                yield producer, lane, sequence
        self._add(sink.name, numbers())
        return self

    def _add(self, where, numbers):
        """Order: at one broker the first arrivals of a lane's messages are in the lane's order.
        Repeats, of messages that were in flight when a link was lost, may come later."""
        highest = {}
        seen = set()
        for number in numbers:
            lane = number[:2]
            if number not in seen:
                seen.add(number)
                if number[2] < highest.get(lane, -1):
                    self.disorder.append(f"{where}: lane {lane}: {number[2]} after {highest[lane]}")
                highest[lane] = max(number[2], highest.get(lane, -1))
            self.times[number] += 1

    def missing(self, producers):
        """Of each producer's accepted messages, those that never arrived."""
        return [(p.number, lane, sequence)
                for p in producers for lane in range(p.lanes) for sequence in range(p.file.accepted(lane))
                if (p.number, lane, sequence) not in self.times]

    def duplicates(self):
        return sum(times - 1 for times in self.times.values())


def check_all_arrived(producers, *sources, order=True):
    """Nothing accepted is missing, nothing is damaged, lanes are in order. Returns the duplicates."""
    arrivals = Arrivals()
    for source in sources:
        getattr(arrivals, "add_sink" if hasattr(source, "record") else "add_subscriber")(source)
    missing = arrivals.missing(producers)
    assert not missing, f"{len(missing)} accepted messages never arrived, the first: {missing[:5]}"
    assert not arrivals.damaged, f"{arrivals.damaged} bodies were damaged"
    if order:
        assert not arrivals.disorder, f"{len(arrivals.disorder)} out of order, the first: {arrivals.disorder[:5]}"
    return arrivals.duplicates()


def wait_all_arrived(producers, *subscribers, deadline_s=30):
    """Subscribers may lag behind the broker's acknowledgements."""
    total = sum(p.file.accepted() for p in producers)
    wait_for(lambda: sum(s.count() for s in subscribers) >= total,
             lambda: f"{total} messages at the subscribers, {sum(s.count() for s in subscribers)} arrived", deadline_s)
