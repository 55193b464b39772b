"""Upgrades under load: no producer sees an error, nothing is sent twice, connections in the clear are kept.

5 upgrades, or 100 with TG_FULL=1 (tools/check --faults)."""

import os
import signal

import pytest

from harness import FULL, Mosquitto, Process, Sink, pool, program, wait_for
from load import Producer, check_all_arrived, wait_all_arrived

UPGRADES = 100 if FULL else 5


class Upgraded:
    """The process that serves now, found by what it says; ended by its own pid."""

    def __init__(self, box, daemon):
        self.box, self.daemon = box, daemon
        box.at_end(self.end)

    def pid(self):
        return self.daemon.ctl("status")["status"]["pid"]

    def upgrade(self):
        return self.box.run(program("tidegatectl"), "-s", self.daemon.admin, "upgrade")

    def end(self):
        if self.daemon.answers():
            pid = self.pid()
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not self.daemon.answers(), "the last daemon's end", 20)


def load(box, d, count, **options):
    producers = [Producer(box, d, number=n, count=count, batch=8, lanes=2, rate=4000, low=10, high=3000, **options)
                 for n in range(1, 5)]
    for producer in producers:
        producer.wait_accepted(1)
    return producers


@pytest.mark.long
@pytest.mark.sanitizers
def test_upgrades_under_load_are_not_noticed(box, daemon):
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    producers = load(box, d, 4000 * UPGRADES, deadline_s=60 + 3 * UPGRADES)
    pids = {serving.pid()}
    connections = sink.stats()["connections_ever"]
    for _ in range(UPGRADES):
        result = serving.upgrade()
        assert result.returncode == 0, result.stderr
        pids.add(serving.pid())
    assert len(pids) == UPGRADES + 1
    for producer in producers:
        assert producer.finish(60 + 3 * UPGRADES) == {"delivered": producer.count * producer.lanes}
        assert producer.file.resent == 0
    check_all_arrived(producers, sink)
    assert sink.stats()["connections_ever"] == connections
    print(f"{UPGRADES} upgrades, longest time to a completion {max(p.file.elapsed_max_us for p in producers)} us")


@pytest.mark.long
def test_upgrade_keeps_connections_to_mosquitto(box, daemon):
    broker = Mosquitto(box).start()
    subscriber = broker.subscriber()
    d = daemon(pool([broker]))
    serving = Upgraded(box, d)
    producers = load(box, d, 5000)
    for _ in range(3):
        assert serving.upgrade().returncode == 0
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * producer.lanes}
    wait_all_arrived(producers, subscriber)
    assert [link["connects"] for link in d.links()] == [0]


def test_new_daemon_that_does_not_start_leaves_the_old_one_serving(box, daemon, sink):
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    good, pid = d.config.read_text(), serving.pid()
    producers = load(box, d, 3000)
    d.config.write_text(good.replace("mqtt", "telegraph"))
    result = serving.upgrade()
    assert result.returncode == 1 and "did not take over" in result.stderr
    assert serving.pid() == pid
    d.config.write_text(good)
    assert serving.upgrade().returncode == 0
    assert serving.pid() != pid
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * producer.lanes}
    check_all_arrived(producers, sink)


def test_orphans_are_handed_over(box, daemon):
    sink = Sink(box, options=["--freeze"])
    d = daemon(pool([sink]), ready=False)
    serving = Upgraded(box, d)
    producer = Producer(box, d, number=1, count=200, batch=8)
    producer.wait_accepted(200)
    producer.process.kill()
    wait_for(lambda: [lane for lane in d.rows("lanes") if lane["orphan"]], "the orphan")
    assert serving.upgrade().returncode == 0
    wait_for(lambda: [lane for lane in d.rows("lanes") if lane["orphan"]], "the orphan")
    sink.start()
    sink.tell("set", "freeze", "off")
    wait_for(lambda: not d.rows("lanes"), "its end", 30)
    check_all_arrived([producer], sink)


@pytest.mark.sanitizers
def test_upgrades_wait_for_lanes_that_are_being_made(box, daemon, sink):
    """Clients that open large lanes without end see nothing of it but a pause."""
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    openers = [Process(box, f"greedy-{n}", [program("greedy"), d.socket, "events", "open", 16 << 20]) for n in range(3)]

    def opened():
        return d.ctl("stats")["stats"]["lanes_opened"]

    for opener in openers:
        wait_for(lambda opener=opener: "ready" in opener.text(), "it to have opened a lane", 30)
    for _ in range(3):
        pid = serving.pid()
        result = serving.upgrade()
        assert result.returncode == 0, result.stderr
        assert serving.pid() != pid
        wait_for(lambda: opened() > 6, lambda: f"lanes opened by the new daemon: {opened()}", 30)
        assert all(opener.alive() for opener in openers), [opener.text() for opener in openers]
    for opener in openers:
        opener.kill()
    d.wait_no_lanes()
    assert d.publish("-m", "x").returncode == 0
