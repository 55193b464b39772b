"""The parts of test_neighbours.py's rows: an honest neighbour at a steady rate, a bad one, and the service each
got."""

import collections
import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
import time

import pytest

from bad_neighbour import Spec  # noqa: F401
from harness import FULL, PATIENCE, Box, Daemon, Process, listens, wait_for  # noqa: F401
from load import Producer, percentile

ALONE_S, BESIDE_S = (10, int(os.environ.get("TG_NEIGHBOURS_S", "60"))) if FULL else (1, 4)
RATE = 500  # messages a second of the honest one, where it does not publish as fast as it can
TIMEOUT_MS = 30000 if FULL else 10000
# The promised limits, which a minute shows; in the short form, limits that a busy machine of two processors keeps.
P99_MS, SHARE, SHARE_AT_FULL_SPEED = (250, 0.99, 0.8) if FULL else (4000, 0.75, 0.2)


class OpenBox(Box):
    """A box whose folder every account may pass through, as /run is."""

    def __init__(self):
        path = pathlib.Path(tempfile.mkdtemp(prefix="tidegate-"))
        path.chmod(0o755)
        super().__init__(path)

    def fini(self):
        super().fini()
        shutil.rmtree(self.path, ignore_errors=True)


@dataclasses.dataclass
class Figures:
    """Of the honest one: messages a second, milliseconds, and outcomes of all it published."""
    alone: float
    beside: float
    p50: float
    p99: float
    worst: float
    outcomes: dict


class Neighbour:
    """The honest one: publishes at a steady rate, or with rate 0 as fast as it is taken, and waits for each completion."""

    def __init__(self, box, d, topic, number=1, rate=RATE, words=(), pool="events"):
        self.rate = rate
        self.producer = Producer(box, d, number, count=rate * 2000 or 1 << 28, rate=rate, topic=topic, deadline_s=1200,
                                 batch=1 if rate else 64, words=("-F", "-T", TIMEOUT_MS, *words), pool=pool)
        self.file = self.producer.file
        self.producer.wait_accepted(1)

    def count_for(self, seconds, bads=()):
        """Completions a second over this time. The time itself is what is measured, so it has to pass."""
        done, start = self.file.completed(), time.monotonic()
        while time.monotonic() - start < seconds:
            assert self.producer.process.alive(), self.producer.process.text()
            for bad in bads:
                assert bad.alive() or bad.spec.most <= len(bad.lines()), bad.text()
            time.sleep(0.05)
        return (self.file.completed() - done) / (time.monotonic() - start)

    def run(self, bad_start):
        """Alone, then beside the processes that bad_start() starts and returns."""
        alone = self.count_for(ALONE_S)
        self.file.phase(1)
        bads = bad_start()
        return alone, self.count_for(BESIDE_S, bads), bads

    def finish(self, alone, beside):
        outcomes = self.producer.finish_early(deadline_s=60)
        p50, p99, worst = (percentile([self.producer], 1, True, share)[0] / 1000 for share in (0.5, 0.99, 1))
        return Figures(alone, beside, p50, p99, worst, outcomes)


class BadProcess(Process):
    """bad_neighbour.py, and what it wrote down."""

    def __init__(self, box, d, spec, name="bad"):
        self.file = box.path / f"{name}.lines"
        self.file.touch()
        self.file.chmod(0o666)
        spec = dataclasses.replace(spec, socket=str(d.socket), out=str(self.file),
                                   patience_s=spec.patience_s * PATIENCE)
        self.spec = spec
        program = pathlib.Path(__file__).with_name("bad_neighbour.py")
        super().__init__(box, name, ["/usr/bin/python3", program, json.dumps(dataclasses.asdict(spec))])
        wait_for(lambda: self.file.stat().st_size or not self.alive(), f"{name} to start", 60)

    def lines(self):
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def finish(self):
        """Tells it to publish no more, waits for its end; each message accepted has exactly one completion."""
        status = self.stop(self.spec.timeout_ms / 1000 + 2 * self.spec.patience_s)
        assert status == 0, f"{self.name} ended with {status}: {self.text()[-2000:]}"
        accepted, completed = collections.Counter(), collections.Counter()
        for line in self.lines():
            who = (line.get("pid"), line.get("tag"))
            accepted[who] += "accepted" in line
            completed[who] += "completed" in line
        wrong = {who: completed[who] for who in accepted if accepted[who] != completed[who]}
        assert not wrong, f"{len(wrong)} messages of {self.name} without exactly one completion: {list(wrong.items())[:5]}"
        return self

    def outcomes(self, kind="bad"):
        return dict(collections.Counter(line["outcome"] for line in self.lines() if line.get("completed") == kind) +
                    collections.Counter("refused" for line in self.lines() if line.get("refused") == kind))

    def words(self, kind="bad"):
        """The reasons it was given, numbers made alike."""
        return collections.Counter(re.sub(r"\d+", "N", line["words"]) for line in self.lines()
                                   if line.get("completed") == kind and line["outcome"] != "delivered")

    def wordless(self):
        return [line for line in self.lines() if line.get("completed") == "bad" and line["outcome"] != "delivered"
                and not line["words"]]


def need(there, what):
    if not there:
        pytest.skip(f"needs {what}")


def wait_listening(ports):
    for port in ports:
        wait_for(lambda p=port: listens(p), f"a listener on {port}", 60, 0.05)


def all_outcomes(bads):
    return sum((collections.Counter(bad.outcomes()) for bad in bads), collections.Counter())


HEAD = ("| row | protocol | brokers | alone, /s | beside, /s | p50, ms | p99, ms | worst, ms | the neighbour's | the bad one's |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---|---|")


def told(outcomes):
    return ", ".join(f"{number:,} {name}" for name, number in sorted(outcomes.items())) or "none"


def line_of(name, protocol, brokers, f, bad):
    return (f"| {name} | {protocol} | {brokers} | {f.alone:,.0f} | {f.beside:,.0f} | {f.p50:.2f} | {f.p99:.2f} | "
            f"{f.worst:.1f} | {told(f.outcomes)} | {told(bad)} |")
