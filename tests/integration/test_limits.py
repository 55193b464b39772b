"""An exhausted limit is an error for the client that asked, with object, value and limit, and other clients do not notice."""

import os
import resource
import select
import time

import pytest

import tidegate_lib as tide
from harness import SANITIZED, pool, wait_for

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")


class refused:
    """This must be refused with that code, and say all of this."""

    def __init__(self, code, *words):
        self.code, self.words = code, words

    def __enter__(self):
        return self

    def __exit__(self, kind, value, _trace):
        assert kind is tide.TideError, "nothing was refused"
        assert value.code == self.code, str(value)
        for word in self.words:
            assert word in str(value), f"{word} is not said: {value}"
        return True


@pytest.fixture
def opened():
    clients = []

    def connect(d):
        clients.append(tide.Client(d.socket))
        return clients[-1]
    yield connect
    for client in clients:
        client.close()


def fill(lane):
    """Publishes until there is no more room; each call must answer at once."""
    count = 0
    while True:
        start = time.monotonic()
        try:
            lane.publish(b"x" * 1000, tag=count)
        except tide.TideError as error:
            assert error.code == tide.EAGAIN, str(error)
            return count
        finally:
            # A call that looks for the daemon may take one attempt, and no daemon answers none.
            assert time.monotonic() - start < 5
        count += 1


@pytest.mark.parametrize("way", ["wait", "descriptor"])
def test_full_ring_without_a_daemon_says_again_and_its_owner_sleeps(daemon, sink, opened, way):
    d = daemon(pool([sink]))
    lane = opened(d).lane(ring_bytes=16384)
    lane.publish_sync(b"before")
    if way == "descriptor":
        lane.fd()
    d.process.kill()
    count = fill(lane)
    assert 8 <= count <= 16
    with refused(tide.EAGAIN, "16384"):
        lane.publish(b"x" * 1000)
    cpu, start = time.process_time(), time.monotonic()
    with refused(tide.ETIMEOUT):
        while True:
            lane.wait(1000)
    assert time.process_time() - cpu < (time.monotonic() - start) / 2
    d.launch()
    got = []
    if way == "wait":
        got = lane.collect(count, 20000)
    else:
        poller = select.poll()
        poller.register(lane.fd(), select.POLLIN)
        while len(got) < count:
            assert poller.poll(20000), "the descriptor stayed silent"
            got += lane.poll()
    assert [(c.tag, c.name) for c in got] == [(tag, "delivered") for tag in range(count)]
    assert lane.publish_sync(b"after").name == "delivered"
    assert d.process.alive()


def test_memory_of_all_lanes_is_limited(daemon, sink, opened):
    d = daemon(pool([sink]), limits={"memory_bytes": 3 << 19, "memory_per_user": 3 << 19})
    client, other = opened(d), opened(d)
    first = other.lane()
    lanes = [client.lane() for _ in range(2)]
    with refused(tide.ELIMIT, "limits.memory_bytes is 1572864", str(2 * 4096 + 262144 + 2048 * (32 + 64))):
        client.lane()
    for lane in (first, *lanes):
        assert lane.publish_sync(b"x").name == "delivered"
    lanes[0].close()

    def another():
        """A closed lane counts until its memory is freed."""
        try:
            return client.lane()
        except tide.TideError as error:
            assert error.code == tide.ELIMIT, str(error)
            return None
    assert wait_for(another, "room for another").publish_sync(b"x").name == "delivered"


def test_lanes_of_one_process_are_limited(daemon, sink, opened):
    d = daemon(pool([sink]), limits={"lanes_per_client": 2})
    client, other = opened(d), opened(d)
    lanes = [client.lane(), client.lane()]
    with refused(tide.ELIMIT, f"process {os.getpid()} has 2 lanes", "limits.lanes_per_client is 2"):
        client.lane()
    for lane in (*lanes, other.lane()):
        assert lane.publish_sync(b"x").name == "delivered"


def test_clients_are_limited(daemon, sink, opened):
    d = daemon(pool([sink]), limits={"clients": 2, "clients_per_user": 2})
    first, second = opened(d), opened(d)
    lane = first.lane()
    second.lane()
    third = opened(d)
    for _ in range(2):
        with refused(tide.ELIMIT, "all users have 2 connections", f"user {os.getuid()} asks", "limits.clients is 2"):
            third.lane()
    assert lane.publish_sync(b"x").name == "delivered"
    second.close()

    def admitted():
        """Once the daemon has seen the other go."""
        try:
            return third.lane()
        except tide.TideError as error:
            assert error.code == tide.ELIMIT, str(error)
            return None
    assert wait_for(admitted, "its place").publish_sync(b"x").name == "delivered"


def test_memory_that_the_daemon_cannot_have_is_said(daemon, sink, opened):
    d = daemon(pool([sink]))
    client, other = opened(d), opened(d)
    first = other.lane()
    first.publish_sync(b"x")
    descriptors = d.process.descriptors()
    with open(f"/proc/{d.process.pid}/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.prlimit(d.process.pid, resource.RLIMIT_AS, (now + (64 << 20), resource.RLIM_INFINITY))
    with refused(tide.ENOMEM, "events", str(2 * 4096 + (1 << 26) + (1 << 19) * 32)):
        client.lane(ring_bytes=1 << 26)
    assert first.publish_sync(b"x").name == "delivered"
    assert client.lane().publish_sync(b"x").name == "delivered"
    wait_for(lambda: d.process.descriptors() <= descriptors + 3, "no descriptor left behind")
    resource.prlimit(d.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert client.lane(ring_bytes=1 << 26).publish_sync(b"x").name == "delivered"


# The daemon sets some aside for its links; with one or two left in all, it is the kernel that has no more.
@pytest.mark.parametrize("left, words", [(9, ("file descriptors", "what LimitNOFILE= leaves")),
                                         (1, ("events", "(LimitNOFILE=) is {limit}"))])
def test_descriptors_that_the_daemon_has_no_more_of_are_said(daemon, sink, opened, left, words):
    d = daemon(pool([sink]), limits={"descriptors_per_user": 100000})
    client, other = opened(d), opened(d)
    first = other.lane()
    limit = d.process.descriptors() + left
    _, hard = resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE, (limit, hard))
    lanes = []
    with refused(tide.ELIMIT, *(word.format(limit=limit) for word in words)):
        while True:
            lanes.append(client.lane())
    for lane in (first, *lanes):
        assert lane.publish_sync(b"x").name == "delivered"
    resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert client.lane().publish_sync(b"x").name == "delivered"


def test_descriptors_that_a_producer_has_no_more_of_are_said(daemon, sink, opened):
    d = daemon(pool([sink]))
    client = opened(d)
    first = client.lane()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    lanes = []
    # Every number below the limit is taken, so that what is left is known: five, and a lane needs four.
    fill_up = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 6, hard))
        while True:
            fd = os.open("/dev/null", os.O_RDONLY)
            fill_up.append(fd)
            if fd >= highest:
                break
        with refused(tide.ELIMIT, "this process has no descriptors left"):
            for _ in range(3):
                lanes.append(client.lane())
        assert len(lanes) == 1
        for lane in (first, *lanes):
            assert lane.publish_sync(b"x").name == "delivered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fill_up:
            os.close(fd)
    # The daemon handed the lanes back that it could not take.
    lanes.append(client.lane())
    wait_for(lambda: len(d.rows("lanes")) == 1 + len(lanes), lambda: f"{1 + len(lanes)} lanes: {len(d.rows('lanes'))}")
