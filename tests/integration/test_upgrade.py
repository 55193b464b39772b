"""Upgrades under load: no producer sees an error, nothing is sent twice, connections in the clear are kept.

5 upgrades, or 100 with TG_FULL=1 (tools/check --faults)."""

import os
import re
import resource
import signal
import threading

import pytest

import harness_amqp
import tidegate_lib as tide
from harness import FULL, SANITIZED, Mosquitto, Process, Sink, have, libconfig, pool, program, wait_for
from harness_amqp import QueueArrivals, Rabbit
from harness_nats import NatsServer, StreamReader, Subscriber
from load import Producer, check_all_arrived, percentile, wait_all_arrived
from test_amqp import amqp
from test_nats import nats_pool
from tls import Authority, TlsMosquitto

UPGRADES = 100 if FULL else 5


class Upgraded:
    """The process that serves now, found by what it says."""

    def __init__(self, box, daemon):
        self.box, self.daemon = box, daemon

    def pid(self):
        return self.daemon.ctl("status")["status"]["pid"]

    def upgrade(self):
        return self.box.run(program("tidegatectl"), "-s", self.daemon.admin, "upgrade")


def load(box, d, count, rate=4000, **options):
    producers = [Producer(box, d, number=n, count=count, batch=8, lanes=2, rate=rate, low=10, high=3000, **options)
                 for n in range(1, 5)]
    for producer in producers:
        producer.wait_accepted(1)
    return producers


class Connections:
    """The kernel's list of established connections to a port, sampled continuously."""

    def __init__(self, port):
        self.end = f":{port:04X}"
        self.ever = set()
        self.most = 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def now(self):
        """The other ends of those a broker has."""
        with open("/proc/net/tcp", encoding="ascii") as table:
            rows = [line.split() for line in table.readlines()[1:]]
        return {row[2] for row in rows if row[1].endswith(self.end) and row[3] == "01"}

    def __enter__(self):
        self.first = self.now()
        self.ever = set(self.first)
        self.most = self.least = len(self.first)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def _watch(self):
        while not self.stopped.wait(0.001):
            now = self.now()
            self.ever |= now
            self.most = max(self.most, len(now))
            self.least = min(self.least, len(now))


def upgrade_many(serving, producers, times):
    """Each with some time of ordinary work before it, which is measured apart."""
    pids = {serving.pid()}

    def work(count):
        goal = sum(p.file.completed() for p in producers) + count
        wait_for(lambda: sum(p.file.completed() for p in producers) >= goal or not all(p.process.alive() for p in producers),
                 "work", 60, 0.002)

    for _ in range(times):
        work(1000)
        for producer in producers:
            producer.file.phase(1)
        result = serving.upgrade()
        assert result.returncode == 0, result.stderr
        work(1)
        for producer in producers:
            producer.file.phase(0)
        pids.add(serving.pid())
    assert len(pids) == times + 1


def report(name, producers, times):
    for answers, what in ((0, "tg_publish"), (1, "publish to completion")):
        during, many = percentile(producers, 1, answers, 0.999)
        without, _ = percentile(producers, 0, answers, 0.999)
        print(f"{name}: {times} upgrades, {what}: p99.9 {during:.0f} us during one ({many} counted), {without:.0f} us without; "
              f"load {os.getloadavg()[0]:.1f}")
        assert many > 0


@pytest.mark.long
@pytest.mark.sanitizers
def test_upgrades_under_load_are_not_noticed(box, daemon):
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    producers = load(box, d, 4000 * UPGRADES, deadline_s=60 + 3 * UPGRADES)
    connections = sink.stats()["connections_ever"]
    upgrade_many(serving, producers, UPGRADES)
    for producer in producers:
        assert set(producer.finish_early(60)) == {"delivered"}
        assert producer.file.resent == 0
    check_all_arrived(producers, sink)
    assert sink.stats()["connections_ever"] == connections
    report("sink", producers, UPGRADES)


class OverMqtt:
    moves = True
    rate = 1000
    completes = "delivered"

    def __init__(self, box, links):
        self.broker = Mosquitto(box).start()
        self.subscriber = self.broker.subscriber()
        self.pool = pool([self.broker], links=links)

    def check(self, producers):
        wait_all_arrived(producers, self.subscriber)
        return check_all_arrived(producers, self.subscriber)


class OverTls(OverMqtt):
    moves = False

    def __init__(self, box, links):
        authority = Authority(box.path / "ca")
        self.broker = TlsMosquitto(box, authority, authority.issue()).start()
        self.pool = pool([self.broker], links=links, tls={"ca_file": authority.cert})
        self.subscriber = self.broker.subscriber()


class OverJetStream:
    """The stream drops what has an id it has seen: that nothing was sent twice is counted at our end."""
    moves = True
    rate = 1000
    completes = "delivered"

    def __init__(self, box, links):
        if not have("nats-server"):
            pytest.skip("needs nats-server")
        self.broker = NatsServer(box).start().stream()
        self.pool = nats_pool([self.broker], links=links)

    def check(self, producers):
        return check_all_arrived(producers, StreamReader(self.broker))


class OverCore(OverJetStream):
    completes = "sent"

    def __init__(self, box, links):
        if not have("nats-server"):
            pytest.skip("needs nats-server")
        self.broker = NatsServer(box).start()
        self.subscriber = Subscriber(self.broker, "load.>")
        self.pool = nats_pool([self.broker], {"jetstream": False}, links=links)

    def check(self, producers):
        wait_all_arrived(producers, self.subscriber)
        return check_all_arrived(producers, self.subscriber)


class OverAmqp:
    moves = True
    rate = 300
    completes = "delivered"

    def __init__(self, box, links):
        if not harness_amqp.available():
            pytest.skip("needs rabbitmq-server")
        self.broker = Rabbit(box).start()
        self.broker.declare(("queue", "load"), ("exchange", "load", "topic"), ("bind", "load", "load", "load.#"))
        self.pool = amqp([self.broker], amqp={"exchange": "load"}, links=links)

    def check(self, producers):
        depth = self.broker.depth("load")
        return check_all_arrived(producers, QueueArrivals(self.broker, "load", depth))


@pytest.mark.long
@pytest.mark.parametrize("over", [OverMqtt, OverTls, OverJetStream, OverCore, OverAmqp])
def test_upgrades_keep_connections_or_replace_them_by_proven_ones(box, daemon, over):
    """Those in the clear are the same ones afterwards; those with TLS are there before the old ones go, so that there
    are at most twice as many, and never less than a pool of proven ones."""
    links = 4
    way = over(box, links)
    d = daemon(way.pool)
    serving = Upgraded(box, d)
    producers = load(box, d, 4000 * UPGRADES, rate=way.rate, deadline_s=60 + 3 * UPGRADES, topic="load.t")
    with Connections(int(way.broker.address.rpartition(":")[2])) as connections:
        besides = len(connections.first) - links
        upgrade_many(serving, producers, UPGRADES)
    handed = [(int(n), int(left)) for n, left in
              re.findall(r"event=upgraded .* links=(\d+) outstanding=(\d+)", d.process.text())]
    assert len(handed) == UPGRADES
    quiet = all(left == 0 for _, left in handed)
    if way.moves:
        # A broker that takes more than half a second for its answers, on a machine that busy, loses those connections.
        assert all(n == links for n, left in handed if left == 0) and any(left == 0 for _, left in handed), handed
        assert len(connections.ever - connections.first) <= sum(links - n for n, _ in handed), handed
        assert connections.ever == connections.first or not quiet
    else:
        assert {n for n, _ in handed} == {0}
        assert len(connections.ever) >= len(connections.first) + links * UPGRADES
    assert links + besides <= connections.least or not quiet
    assert connections.most <= 2 * links + besides
    for producer in producers:
        assert set(producer.finish_early(60)) == {way.completes}
    twice, resent = way.check(producers), sum(p.file.resent for p in producers)
    assert twice == 0 or not quiet and twice <= resent
    print(f"{over.__name__}: at most {connections.most - besides} connections for {links} links, {resent} sent twice")
    if way.moves and quiet:
        assert resent == 0
    report(over.__name__, producers, UPGRADES)


PROTOCOLS = {"mqtt": {"mqtt": {"version": 5, "qos": 1}}, "redis": {"redis": {}}, "stomp": {"stomp": {}},
             "nats": {"nats": {}}, "amqp": {"amqp": {}}}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sessions_of_every_protocol_are_kept(box, daemon, protocol):
    sink = Sink(box, protocol=protocol).start()
    entry = {"name": "events", "protocol": protocol, "brokers": [{"address": sink.address}], **PROTOCOLS[protocol]}
    d = daemon(entry)
    serving = Upgraded(box, d)
    producers = load(box, d, 100000, rate=1000)
    connections = sink.stats()["connections_ever"]
    upgrade_many(serving, producers, 2)
    for producer in producers:
        assert set(producer.finish_early()) == {"delivered"}
    check_all_arrived(producers, sink)
    assert sink.stats()["connections_ever"] == connections
    assert sum(p.file.resent for p in producers) == 0


@pytest.mark.parametrize("protocol, old, new", [("nats", {"jetstream": True}, {"jetstream": False}),
                                                ("amqp", {"vhost": "/"}, {"vhost": "/other"})])
def test_connection_made_with_other_settings_is_replaced(box, daemon, protocol, old, new):
    """It is subscribed to no answers, or opened to another virtual host: there is no going on with it."""
    sink = Sink(box, protocol=protocol).start()
    d = daemon({"name": "events", "protocol": protocol, "brokers": [{"address": sink.address}], protocol: old})
    serving = Upgraded(box, d)
    producer = Producer(box, d, number=1, count=100000, batch=8, rate=1000)
    producer.wait_accepted(100)
    connections, text = sink.stats()["connections_ever"], d.config.read_text()
    (key, before), (_, after) = *old.items(), *new.items()
    changed = text.replace(f"{key} = {libconfig(before)}", f"{key} = {libconfig(after)}")
    assert changed != text
    d.config.write_text(changed)
    upgrade_many(serving, [producer], 1)
    assert set(producer.finish_early()) <= {"delivered", "sent"}
    check_all_arrived([producer], sink)
    assert sink.stats()["connections_ever"] == connections + len(d.links())
    assert "link_not_taken" in d.process.text()


def test_new_daemon_that_does_not_start_leaves_the_old_one_serving(box, daemon, sink):
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    good, pid = d.config.read_text(), serving.pid()
    producers = load(box, d, 3000)
    d.config.write_text(good.replace("mqtt", "telegraph"))
    result = serving.upgrade()
    assert result.returncode == 1 and "did not take over" in result.stderr
    assert serving.pid() == pid
    # A socket that cannot be made is no reason to go, either.
    d.config.write_text(good.replace(str(d.socket), "/proc/no/socket"))
    result = serving.upgrade()
    assert result.returncode == 1 and "did not take over" in result.stderr
    assert "path=/proc/no/socket step=bind" in d.process.text()
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


@pytest.mark.sanitizers
def test_daemon_that_is_told_to_stop_does_not_hand_over(box, daemon):
    """A SIGTERM during an upgrade stops the new daemon, too."""
    sink = Sink(box, options=["--ack-delay", "2000"]).start()  # so that the upgrade waits for an answer
    d = daemon(pool([sink]))
    producer = Producer(box, d, number=1, count=100, batch=8)
    wait_for(lambda: sum(link["outstanding"] for link in d.rows("links")) == 100, "all of them on their way")
    os.kill(d.process.pid, signal.SIGUSR2)
    wait_for(lambda: "event=upgrading" in d.process.text(), "the upgrade's beginning")
    os.kill(d.process.pid, signal.SIGTERM)
    wait_for(lambda: not d.process.alive(), "its end", 30)
    assert not d.answers()
    text = d.process.text()
    assert "event=upgraded" not in text and "event=stopping drained=yes" in text, text
    assert producer.finish() == {"delivered": 100}


def size_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize:"))


@pytest.mark.skipif(SANITIZED, reason="sanitizers need all the address space there is")
def test_lane_that_a_new_daemon_has_no_memory_for_comes_back(box, daemon):
    """Its client is told so, and hands it back until there is some."""
    ring = 64 << 20
    sink = Sink(box, options=["--freeze"]).start()
    d = daemon(pool([sink]), ready=False)
    serving = Upgraded(box, d)
    before = size_of(serving.pid())
    producer = Producer(box, d, number=1, count=100, batch=8, ring=ring)
    producer.wait_accepted(100)
    resource.prlimit(d.process.pid, resource.RLIMIT_AS, (before + ring, resource.RLIM_INFINITY))
    assert serving.upgrade().returncode == 0
    wait_for(lambda: "event=lane_not_taken" in d.process.text(), "the new daemon to have no memory")
    assert not d.rows("lanes")
    resource.prlimit(serving.pid(), resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_for(lambda: d.rows("lanes"), "the lane to come back", 20)
    sink.tell("set", "freeze", "off")
    assert producer.finish() == {"delivered": 100}


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")
def test_thousand_lanes_are_handed_over_at_once(box, daemon, sink, many_descriptors):
    d = daemon(pool([sink]))
    serving = Upgraded(box, d)
    client = tide.Client(d.socket)
    lanes = [client.lane(ring_bytes=16384) for _ in range(1000)]
    for _ in range(3):
        result = serving.upgrade()
        assert result.returncode == 0, result.stderr
        wait_for(lambda: len(d.rows("lanes")) == len(lanes), lambda: f"a thousand lanes: {len(d.rows('lanes'))}")
    for lane in lanes:
        lane.publish(b"x")
    for lane in lanes:
        lane.flush()
    client.close()
