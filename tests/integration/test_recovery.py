"""How long a daemon takes to come back to where its predecessor was: full rings, every record sent and unanswered.

    TG_FULL=1 python3 -m pytest -s tests/integration/test_recovery.py

prints it for 1,000 lanes of 1 MiB, beside the time it takes to read that memory (64 without TG_FULL)."""

import os
import re
import time
from datetime import datetime

import pytest

from harness import FULL, Sink, pool, wait_for
from load import Producer

PROCESSES = 16 if FULL else 4
LANES = 1000 if FULL else 64
RING = 1 << 20
BODY = 1000
RECORDS = RING // 1072  # of this body, with head and topic


def memory_of(process):
    """The rings of a producer, by its own descriptors."""
    folder = f"/proc/{process.pid}/fd"
    return [f"{folder}/{fd}" for fd in os.listdir(folder) if "tidegate-ring" in os.readlink(f"{folder}/{fd}")]


def read_all(paths):
    """Reads it all, and how many bytes and seconds that was."""
    room = bytearray(RING)
    size, start = 0, time.monotonic()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while (n := file.readinto(room)):
                size += n
    return size, time.monotonic() - start


def at(line):
    return datetime.strptime(line.split()[0], "ts=%Y-%m-%dT%H:%M:%S.%fZ").timestamp()


@pytest.mark.long
def test_full_lanes_come_back(box, daemon):
    silent = Sink(box, "silent", options=["--no-ack"], record=False).start()
    d = daemon(pool([silent], links=32, window={"messages": 60000, "low": 59000, "bytes": 1 << 33},
                    watermarks={"high": 1 << 26, "low": 1 << 25}, message_timeout_ms=3600000,
                    health={"ack_timeout_ms": 3600000, "stall_timeout_ms": 3600000}))
    share = [LANES // PROCESSES + (n < LANES % PROCESSES) for n in range(PROCESSES)]
    producers = [Producer(box, d, number=n + 1, count=RECORDS, lanes=lanes, low=BODY, high=BODY, batch=64, ring=RING,
                          deadline_s=600) for n, lanes in enumerate(share)]
    wait_for(lambda: sum(link["outstanding"] for link in d.links()) == RECORDS * LANES,
             lambda: f"all sent: {d.rows('pools')} {d.links()}", 60, 0.2)
    paths = [path for producer in producers for path in memory_of(producer.process)]
    assert len(paths) == LANES
    size, read_s = read_all(paths)
    d.process.kill()
    silent.kill()
    d.start(ready=False)

    def back():
        lines = [line for line in d.process.text().splitlines() if "event=lane_returned" in line]
        return lines if len(lines) == LANES else None
    lines = wait_for(back, f"{LANES} lanes back", 300, 0.1)
    ticks = d.process.cpu_ticks() / os.sysconf("SC_CLK_TCK")
    unfinished = sum(int(re.search(r"unfinished=(\d+)", line)[1]) for line in lines)
    started = next(line for line in d.process.text().splitlines() if "event=started" in line)
    print(f"{LANES} lanes, {unfinished} records, {size >> 20} MiB: all back {at(lines[-1]) - at(started):.2f} s after the "
          f"daemon's start, {ticks:.2f} s of its CPU until then; reading that memory {read_s:.2f} s; load {os.getloadavg()[0]:.1f}")
    assert unfinished == RECORDS * LANES
    heard = Sink(box, "heard", port=silent.port, record=False).start()
    for producer in producers:
        assert producer.finish(300) == {"delivered": producer.count * producer.lanes}
        assert producer.file.resent == producer.count * producer.lanes
    assert heard.stats()["connections_ever"] >= 1
