"""Shared by the stories of the fault suite: brokers with timed arrivals, load that runs until it has done its
part, the daemon's log of its links, and the figures of a story.

All times are seconds of the wall clock, which the daemon's log, the sinks' records and the subscriber
use, all on this machine."""

import datetime
import json
import os
import pathlib
import re
import shlex
import signal
import threading
import time
import types

from harness import FULL, PATIENCE, Daemon, Mosquitto, Sink, Subscriber, listens, merged, pool, wait_for
from harness_amqp import Rabbit
from load import Arrivals, Producer
from tls import Authority

LATE_STEPS = 4  # a silence is three probes and a decision: each may be woken late
LIVE = ("ready", "suspect", "draining")


def lasts(seconds, what="", also=None):
    """Lets a fault last: waits until the clock has advanced by `seconds`. Only for durations that are
    the subject of a test (1.5 s of silence, an outage of 30 s, 60 s of lost packets), never to wait for an
    event. `also` is called at every look and may fail the test early."""
    end = time.monotonic() + seconds
    wait_for(lambda: (also() if also else None, time.monotonic() >= end)[1], what or f"{seconds} s to pass",
             seconds / PATIENCE + 10, 0.01)


class RealBroker(Mosquitto):
    """mosquitto with a second listener for the subscriber, so that faults hit only the daemon's link. tls: the TLS
    of the daemon's listener, or None."""

    def __init__(self, box, name, memory=False, tls=None):
        self.watch = types.SimpleNamespace(port=box.port())
        words = tls.lines("cafile", "certfile", "keyfile") if tls else []
        super().__init__(box, name, lines=[*words, f"listener {self.watch.port} 127.0.0.1"], memory=memory)
        self.taker = None

    def subscriber(self, filter="#", name=None, **options):
        self.taker = Subscriber(self.box, self.watch, filter, name or f"sub-{self.name}", **options)
        return self.taker

    def start(self):
        super().start()
        wait_for(lambda: listens(self.watch.port), f"{self.name} to listen for its subscriber")
        if self.taker is not None and self.starts > 1:
            self.taker.wait_subscribed(self.seen + 1)
        return self

    def up(self):
        """Starts it with its subscriber listening."""
        if self.taker is not None:
            self.start()
        elif any("persistence" in line for line in self.config.read_text().splitlines()):
            self.seen = 0
            self.prepare()
        else:
            self.start()
            self.subscriber()
        return self

    def down(self):
        """An orderly end: mosquitto saves acknowledged messages for its subscriber."""
        self.seen = self.taker.file.subscribed()
        self.stop()

    seen = 0

    def numbers(self):
        """(producer, lane, sequence) of each arrival, in order."""
        return [(a.producer, a.lane, a.sequence) for a in self.taker.arrivals()]

    def arrived(self):
        return self.taker.count()

    def connects(self):
        """Sessions that tidegate opened here."""
        return sum(process.text().count(" as tidegate-") for process in self.box.processes
                   if process.name.startswith(self.name + "-"))


class ToldBroker(Sink):
    """tidegate-sink, with the interface that stories need of any broker."""

    def up(self):
        return self.start()

    def down(self):
        """Kills it. The sink records before it answers, so it has every acknowledged message."""
        self.kill()

    def numbers(self):
        found = []
        if self.record.exists():
            data = self.record.read_bytes()
            for line in data[:data.rfind(b"\n") + 1].splitlines():
                fields = line.split(b"\t")
                body = fields[8].split(b" ", 3)
                found.append((int(body[0]), int(body[1]), int(body[2])))
        return found

    def arrived(self):
        return self.stats()["messages"]

    def connects(self):
        return self.stats()["connections_ever"]


class AlarmedBroker(Rabbit):
    """RabbitMQ, which its memory alarm makes report itself blocked. Everything goes to one queue."""

    QUEUE = "load"

    def up(self):
        self.start()
        self.declare(("queue", self.QUEUE), ("exchange", self.QUEUE, "fanout"), ("bind", self.QUEUE, self.QUEUE, ""))
        self.mark = self.ctl("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()
        return self

    def alarm(self, on):
        self.ctl("set_vm_memory_high_watermark", "0.0001" if on else self.mark)

    taken = None

    def arrived(self):
        return self.depth(self.QUEUE) if self.taken is None else len(self.taken)

    def numbers(self):
        if self.taken is None:
            self.taken = [tuple(map(int, body[:64].split(b" ", 3)[:3]))
                          for _, _, body in self.drain(self.QUEUE, self.depth(self.QUEUE))]
        return self.taken

    def connects(self):
        raise NotImplementedError("the daemon's figures have it")


class Certificates:
    """A CA and a broker's certificate by it, made when the first story wants TLS."""

    def __init__(self, folder):
        self.folder = folder
        self.made = None

    def files(self):
        if self.made is None:
            authority = Authority(self.folder / "ca")
            self.made = authority.cert, authority.issue()
        ca, identity = self.made
        return ca, identity.cert, identity.key

    def lines(self, *keys):
        return [f"{key} {file}" for key, file in zip(keys, self.files())]


def peers(loads, short=()):
    """(peer, load) for parametrize: sink and mosquitto in the clear with each load, and over TLS too; the
    short form has only those of TLS that `short` names."""
    clear = [(peer, load) for peer in ("sink", "mosquitto") for load in loads]
    tls = [(f"{peer}-tls", load) for peer, load in clear]
    return clear + [pair for pair in tls if FULL or pair in short]


class Load(Producer):
    """A producer that publishes until it is told to stop."""

    ROOM = 3000000  # sparse: a byte for each message it may ever publish

    def __init__(self, box, daemon, number, rate=0, lanes=1, most=None, **options):
        options = {"low": 64, "batch": 8 if rate == 0 else 1, "deadline_s": 900, **options}
        super().__init__(box, daemon, number, count=most or self.ROOM // lanes, rate=rate, lanes=lanes, **options)

    def stop(self):
        if self.process.alive():
            self.process.popen.send_signal(signal.SIGUSR1)

    def outcomes_of(self, lane):
        """A byte for each message the lane has had accepted: 0, or its outcome."""
        accepted = self.file.accepted(lane)
        base = self.file.answers_at(lane)
        return self.file.map[base:base + accepted]

    def unanswered(self):
        """(lane, sequence) of what was accepted and has no completion yet."""
        return [(lane, match.start()) for lane in range(self.lanes) for match in re.finditer(b"\0", self.outcomes_of(lane))]

    def end(self, deadline_s=120):
        """Waits for its end; everything accepted has exactly one completion. Returns the outcomes."""
        status = self.process.wait(deadline_s)
        assert status == 0, f"{self.name} ended with {status}: {self.process.text()}"
        assert self.file.doubles == 0 and self.file.strangers == 0, \
            f"{self.name}: {self.file.doubles} double and {self.file.strangers} strange completions"
        assert self.file.completed() == self.file.accepted()
        return self.file.outcomes()


class MemoryCap:
    """A memory cgroup (version 1 or 2) that the daemon is started in, like systemd's MemoryMax=."""

    def __init__(self, limit_bytes):
        self.limit = limit_bytes
        self.folder = None
        name = f"tidegate-faults-{os.getpid()}"
        for root, limit, peak in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
                                  ("/sys/fs/cgroup", "memory.max", "memory.peak")):
            folder = pathlib.Path(root, name)
            try:
                folder.mkdir()
                (folder / limit).write_text(str(limit_bytes))
            except OSError:
                if folder.exists():
                    folder.rmdir()
                continue
            self.folder, self.peak_file = folder, folder / peak
            return

    def enter(self):
        """In the child, before it becomes the daemon."""
        if self.folder is not None:
            (self.folder / "cgroup.procs").write_text("0")

    def peak_kib(self):
        try:
            return int(self.peak_file.read_text()) // 1024
        except (AttributeError, OSError):
            return None

    def fini(self):
        if self.folder is not None:
            wait_for(lambda: not (self.folder / "cgroup.procs").read_text().strip(), "the cgroup to be empty")
            self.folder.rmdir()


def link_changes(daemon):
    """The daemon's log of its links: dicts with `at` (seconds), broker, link, from, to, cause."""
    changes = []
    for line in daemon.process.text().splitlines():
        if "event=link_state" in line:
            entry = dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
            entry["at"] = datetime.datetime.fromisoformat(entry["ts"].replace("Z", "+00:00")).timestamp()
            changes.append(entry)
    return changes


class Watch:
    """The messages after a fault. `resolved_s`: the last message in flight had its completion; `elsewhere_s`:
    the last lane had a completion for a message published later than the fault. `moved_s`, for saturated lanes
    with thousands of older records: the first completion after left(), when the broker has been left. Samples
    every 20 ms, also while the story waits for something else."""

    def __init__(self, story, since):
        self.story = story
        self.since = since
        self.in_flight = {(load, lane, sequence) for load in story.loads for lane, sequence in load.unanswered()}
        self.count = len(self.in_flight)
        self.lanes = {(load, lane): load.file.accepted(lane) for load in story.loads for lane in range(load.lanes)}
        self.resolved_s = None if self.in_flight else 0.0
        self.elsewhere_s = None if self.lanes else 0.0
        self.stuck = None
        self.moved_s = None

    def left(self):
        self.stuck = {(load, lane): load.file.completed(lane) for load, lane in
                      [(load, lane) for load in self.story.loads for lane in range(load.lanes)]}

    def look(self):
        now = time.time() - self.since
        if self.resolved_s is None:
            self.in_flight = {one for one in self.in_flight if one[0].file.outcome(one[1], one[2]) == "none"}
            if not self.in_flight:
                self.resolved_s = now
        if self.elsewhere_s is None:
            self.lanes = {(load, lane): sequence for (load, lane), sequence in self.lanes.items()
                          if not load.outcomes_of(lane)[sequence:].strip(b"\0")}
            if not self.lanes:
                self.elsewhere_s = now

        if self.stuck is not None and self.moved_s is None:
            self.stuck = {(load, lane): number for (load, lane), number in self.stuck.items()
                          if load.file.completed(lane) <= number}
            if not self.stuck:
                self.moved_s = now

    def wait_moved(self, deadline_s=30):
        wait_for(lambda: (self.look(), self.moved_s is not None)[1],
                 lambda: f"{len(self.stuck)} lanes to have something delivered", deadline_s, 0.02)
        return self.moved_s

    def wait_elsewhere(self, deadline_s=30):
        wait_for(lambda: (self.look(), self.elsewhere_s is not None)[1],
                 lambda: f"{len(self.lanes)} lanes to have new traffic delivered", deadline_s, 0.02)
        return self.elsewhere_s

    def wait_resolved(self, deadline_s=60):
        wait_for(lambda: (self.look(), self.resolved_s is not None)[1],
                 lambda: f"{len(self.in_flight)} messages in flight to be resolved", deadline_s, 0.02)
        return self.resolved_s


class Lateness(threading.Thread):
    """The longest delay with which this machine wakes a sleeping process. A busy machine adds this delay to
    detection times, so limits allow for it, and the figures report it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.worst_s = 0.0
        self.done = False
        self.start()

    def run(self):
        while not self.done:
            before = time.monotonic()
            time.sleep(0.01)
            self.worst_s = max(self.worst_s, time.monotonic() - before - 0.01)


class Story:
    def __init__(self, box, network, certificates, name):
        self.box = box
        self.network = network
        self.certificates = certificates
        self.tls = None
        self.name = name
        self.figures = {}
        self.daemon = None
        self.cap = None
        self.lateness = Lateness()
        self.brokers = []
        self.loads = []

    def within(self, limit_s):
        """The limit, on a machine as busy as this one."""
        self.note(machine_late_s=self.lateness.worst_s)
        return limit_s + self.lateness.worst_s * LATE_STEPS

    # ---- the cast ----

    def broker(self, peer, name, memory=False, options=(), **others):
        """peer: sink, mosquitto or rabbit; the first two with "-tls" behind too."""
        peer, _, secured = peer.partition("-")
        if secured:
            self.tls = self.certificates
        if peer == "mosquitto":
            broker = RealBroker(self.box, name, memory, self.tls)
        elif peer == "rabbit":
            broker = AlarmedBroker(self.box, name)
        else:
            if self.tls:
                _, cert, key = map(str, self.tls.files())
                options = [*options, "--tls-cert", cert, "--tls-key", key]
            broker = ToldBroker(self.box, name, options=options, **others)
        self.brokers.append(broker)
        return broker

    def cast(self, peer, count=2, memory=False, **options):
        """Brokers that are up."""
        return [self.broker(peer, name, memory, **options).up() for name in "abcd"[:count]]

    def tidegated(self, brokers, ready=True, cap_bytes=None, **settings):
        if self.tls:
            settings = merged({"tls": {"ca_file": self.tls.files()[0]}}, settings)
        entry = pool(brokers, **settings)
        if entry["protocol"] != "mqtt":
            del entry["mqtt"]
        self.daemon = Daemon(self.box, [entry])
        if cap_bytes is not None:
            self.cap = MemoryCap(cap_bytes)
            self.daemon.start(ready=ready, preexec_fn=self.cap.enter)
        else:
            self.daemon.start(ready=ready)
        return self.daemon

    def load(self, kind):
        """"idle": nothing; "trickle": four producers of one message a second; "busy": six of 200 a second;
        "saturated": two processes with two lanes each, as fast as they may."""
        if kind == "trickle":
            self.produce(4, rate=1)
        elif kind == "busy":
            self.produce(6, rate=200)
        elif kind == "saturated":
            self.produce(2, lanes=2)

    def produce(self, count, **options):
        first = len(self.loads) + 1
        added = [Load(self.box, self.daemon, number, **options) for number in range(first, first + count)]
        self.loads += added
        for load in added:
            load.wait_accepted(1)
        return added

    # ---- observations ----

    def delivered(self):
        return sum(load.file.completed() for load in self.loads)

    def accepted(self):
        return sum(load.file.accepted() for load in self.loads)

    def wait_delivered_by(self, *brokers, more=1, deadline_s=20):
        """Until each of these has had so many more messages."""
        before = {broker: broker.arrived() for broker in brokers}
        wait_for(lambda: all(broker.arrived() >= before[broker] + more for broker in brokers),
                 lambda: f"{more} more messages at each of {[b.name for b in brokers]}", deadline_s, 0.05)

    def watch(self, since):
        """Begins to watch what a fault at `since` did to the messages."""
        return Watch(self, since)

    def finish(self, deadline_s=120):
        """Stops the load, waits for every completion. Returns the outcomes, summed up."""
        total = {}
        for load in self.loads:
            load.stop()
        for load in self.loads:
            for outcome, number in load.end(deadline_s).items():
                total[outcome] = total.get(outcome, 0) + number
        return total

    # ---- results ----

    def changes(self, broker=None, since=0.0, until=float("inf")):
        return [change for change in link_changes(self.daemon)
                if (broker is None or change["broker"] == broker.address) and since <= change["at"] <= until]

    def left_at(self, broker, since):
        """When the pool stopped giving this broker records: its link was READY until then."""
        return next((change["at"] for change in self.changes(broker, since - 0.002) if change["from"] == "ready"), None)

    def deaths(self, broker=None, since=0.0, until=float("inf")):
        """Connections that carried messages and were given up."""
        return [change for change in self.changes(broker, since, until)
                if change["to"] == "failed" and change["from"] in LIVE]

    def suspicions(self, broker=None, since=0.0, until=float("inf")):
        return [change for change in self.changes(broker, since, until) if change["to"] == "suspect"]

    def check_arrivals(self, may_miss=0, order=True):
        """Every message reported delivered is with a broker. Files lost and duplicated."""
        delivered = sum(load.file.outcomes().get("delivered", 0) for load in self.loads)
        wait_for(lambda: sum(broker.arrived() for broker in self.brokers) >= delivered - may_miss
                 or all(isinstance(broker, ToldBroker) for broker in self.brokers),
                 lambda: f"{delivered} messages to be at the brokers' subscribers", 30, 0.1)
        self.settle()
        arrivals = Arrivals()
        for broker in self.brokers:
            arrivals._add(broker.name, broker.numbers())
        lost = [(load.number, lane, sequence)
                for load in self.loads for lane in range(load.lanes) for sequence in range(load.file.accepted(lane))
                if (load.number, lane, sequence) not in arrivals.times
                and load.file.outcome(lane, sequence) == "delivered"]
        self.note(delivered=delivered, lost=len(lost), duplicated=arrivals.duplicates())
        assert len(lost) <= may_miss, f"{len(lost)} messages were called delivered and never arrived: {lost[:5]}"
        if order:
            assert not arrivals.disorder, f"{len(arrivals.disorder)} out of order: {arrivals.disorder[:5]}"
        return arrivals

    def settle(self):
        """Subscribers lag behind their broker's acknowledgements: until nothing has come for a while
        or everything is there."""
        takers = [broker for broker in self.brokers if isinstance(broker, RealBroker)]
        seen = {}

        def complete():
            have = set()
            if any(broker.arrived() != seen.get(broker) for broker in takers):
                seen.update({broker: broker.arrived() for broker in takers})
                for broker in self.brokers:
                    have.update(broker.numbers())
                return all((load.number, lane, sequence) in have
                           for load in self.loads for lane in range(load.lanes)
                           for sequence in range(load.file.accepted(lane))
                           if load.file.outcome(lane, sequence) == "delivered")
            return False
        if takers:
            try:
                wait_for(complete, "", 15, 0.25)
            except AssertionError:
                pass  # check_arrivals reports the missing ones

    def note(self, **figures):
        self.figures.update({key: round(value, 3) if isinstance(value, float) else value
                             for key, value in figures.items()})

    def note_health(self, victims=(), since=0.0, until=float("inf")):
        """False deaths: links given up while their peer was there. `victims` were not, from since to until."""
        # The log counts whole milliseconds.
        real = [change for victim in victims for change in self.deaths(victim, since - 0.002, until)]
        false = [change for change in self.deaths() if change not in real]
        self.note(false_deaths=len(false), suspicions=len(self.suspicions()),
                  connects=sum(row["attempts"] for row in self.daemon.rows("brokers")))
        return false

    def note_waits(self):
        self.note(worst_wait_s=max((load.file.elapsed_max_us for load in self.loads), default=0) / 1e6,
                  resent=sum(load.file.resent for load in self.loads),
                  eagain=sum(load.file.again for load in self.loads))

    def note_memory(self):
        if self.daemon is not None and self.daemon.process.alive():
            self.note(daemon_peak_kib=int(self.daemon.process._status("VmHWM")))
            if self.cap is not None:
                self.note(cgroup_peak_kib=self.cap.peak_kib())

    def fini(self):
        self.lateness.done = True
        self.note_memory()
        if self.cap is not None:
            if self.daemon is not None:
                self.daemon.process.kill()
            self.cap.fini()

    def file_figures(self, path, went):
        from report import in_words
        record = {"test": self.name, "full": FULL, "passed": went, **self.figures, "load": round(os.getloadavg()[0], 1)}
        line = json.dumps(record)
        print("FIGURES " + line)
        print(in_words(record))
        with open(path, "a") as file:
            file.write(line + "\n")
