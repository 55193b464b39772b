"""systemd's descriptor store: a dead producer's messages survive the daemon's death.

The manager here is a stand-in that does what sd_notify(3), sd_pid_notify_with_fds(3) and
sd_listen_fds(3) write down: it reads a datagram socket, keeps descriptors by name, and passes them to the
daemon that it starts next. systemd itself runs as process 1 or not at all."""

import array
import fcntl
import os
import socket
import struct
import sys
import threading

import pytest

import tidegate_lib as tide
from harness import BUILD, SANITIZED, Process, Sink, pool, program, wait_for
from load import Producer, check_all_arrived
from test_upgrade import Upgraded

pytestmark = pytest.mark.skipif("define HAVE_SYSTEMD 1" not in (BUILD / "build_config.h").read_text(),
                                reason="built without libsystemd")

HIGH = 200  # descriptors that are kept are numbered from here on, those that are passed from 3 on
LAUNCH = """
import os, resource, sys
if "ADDRESS_SPACE" in os.environ:
    resource.setrlimit(resource.RLIMIT_AS, (int(os.environ["ADDRESS_SPACE"]),) * 2)
for at, fd in enumerate(int(number) for number in sys.argv[1].split(",") if number):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
SEALS = 0x0001 | 0x0002 | 0x0004  # F_SEAL_SEAL, SHRINK, GROW
FUTURE_WRITE = 0x0010


class Manager:
    """Starts the daemon and keeps its descriptors."""

    def __init__(self, box, daemon, reads=True, environment=()):
        self.box, self.daemon = box, daemon
        self.environment = dict(environment)
        self.path = box.path / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.store = {}  # name -> descriptors
        self.said = []
        self.starts = 0
        box.at_end(self.fini)
        if reads:
            self.read()

    def read(self):
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while True:
            data, control, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(64 * 4))
            if data == b"end":
                return
            fds = array.array("i")
            for level, kind, payload in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(payload[:len(payload) - len(payload) % fds.itemsize])
            words = dict(line.split("=", 1) for line in data.decode().splitlines())
            self.said.append(words)
            name = words.get("FDNAME")
            if "FDSTOREREMOVE" in words:
                for kept in self.store.pop(name, ()):
                    os.close(kept)
            if words.get("FDSTORE") == "1" and words.get("FDPOLL") == "0":
                self.put(name, *fds)
            for fd in fds:
                os.close(fd)

    def put(self, name, *fds):
        self.store.setdefault(name, []).extend(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in fds)

    def start(self):
        self.starts += 1
        kept = sorted((name, fd) for name, fds in self.store.items() for fd in reversed(fds))
        fds = [fd for _, fd in kept]
        env = {**os.environ, **self.environment, "NOTIFY_SOCKET": str(self.path), "LISTEN_FDS": str(len(kept)),
               "LISTEN_FDNAMES": ":".join(name for name, _ in kept)}
        d = self.daemon
        d.process = Process(self.box, f"managed-{self.starts}",
                            [sys.executable, "-c", LAUNCH, ",".join(map(str, fds)), program("tidegated"), "-c", d.config],
                            env=env, pass_fds=fds)
        d.process.orderly = True
        wait_for(lambda: not d.process.alive() or d.answers(), "the daemon to answer", 20)
        assert d.process.alive(), d.process.text()
        return self

    def restart(self):
        """As after a crash."""
        self.daemon.process.kill()
        return self.start()

    def wait_kept(self, count):
        wait_for(lambda: len(self.store) == count, lambda: f"{count} lanes kept: {self.store}", 20)

    def fini(self):
        if getattr(self, "thread", None) is not None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                s.sendto(b"end", str(self.path))
            self.thread.join(10)
        self.socket.close()
        for fds in self.store.values():
            for fd in fds:
                os.close(fd)


@pytest.fixture
def closed_sink(box):
    """A broker that is not up yet."""
    return Sink(box)


@pytest.fixture
def managed(box, daemon, closed_sink):
    d = daemon(pool([closed_sink], breaker={"retry_ms": 100, "retry_max_ms": 200}), ready=False)
    d.stop()
    return Manager(box, d).start()


def orphans(d):
    return [row for row in d.rows("lanes") if row["orphan"]]


@pytest.mark.sanitizers
def test_dead_producers_records_survive_the_daemons_death(box, managed, closed_sink):
    d = managed.daemon
    producer = Producer(box, d, number=1, count=200, batch=8)
    producer.wait_accepted(200)
    managed.wait_kept(1)
    pid = producer.process.pid
    producer.process.kill()
    wait_for(lambda: orphans(d), "the orphan")
    for _ in range(3):
        managed.restart()
        wait_for(lambda: [(row["pid"], row["orphan"]) for row in d.rows("lanes")] == [(pid, True)], "the orphan")
    closed_sink.start()
    d.wait_no_lanes()
    check_all_arrived([producer], closed_sink)
    managed.wait_kept(0)
    said = [line for line in d.process.text().splitlines() if "orphan_done" in line]
    assert len(said) == 1 and f"pid={pid} " in said[0] and "delivered=200 " in said[0], said


def test_producer_that_dies_while_no_daemon_is_there_loses_nothing(box, managed, closed_sink):
    d = managed.daemon
    producer = Producer(box, d, number=1, count=300, batch=8, rate=300)
    producer.wait_accepted(50)
    managed.wait_kept(1)
    d.process.kill()
    before = producer.file.accepted()
    producer.wait_accepted(before + 50)
    producer.process.kill()
    closed_sink.start()
    managed.start()
    d.wait_no_lanes()
    check_all_arrived([producer], closed_sink)
    managed.wait_kept(0)


@pytest.mark.sanitizers
def test_living_producers_have_their_lanes_back(box, managed, closed_sink):
    closed_sink.start()
    d = managed.daemon
    producers = [Producer(box, d, number=n, count=6000, batch=8, lanes=2, rate=3000, low=10, high=2000)
                 for n in range(1, 5)]
    for producer in producers:
        producer.wait_accepted(1)
    for _ in range(4):
        at = sum(p.file.completed() for p in producers)
        wait_for(lambda: sum(p.file.completed() for p in producers) > at + 100, "progress", 30)
        managed.restart()
        wait_for(lambda: "lanes_restored" in d.process.text(), "the lanes to be back")
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * producer.lanes}
    check_all_arrived(producers, closed_sink)
    d.wait_no_lanes()
    managed.wait_kept(0)


def test_empty_lane_stays_for_its_producer_and_then_goes(box, managed, closed_sink):
    """One whose owner never comes back is let go, and what it published meanwhile is delivered."""
    closed_sink.start()
    d = managed.daemon
    producer = Producer(box, d, number=1, count=200, batch=8, words=["-O", "100", "-L"])
    wait_for(lambda: producer.file.state == 4, "all delivered")
    managed.wait_kept(1)
    producer.process.freeze()
    managed.restart()
    wait_for(lambda: [row["orphan"] for row in d.rows("lanes")] == [True], "the lane")
    d.wait_no_lanes()
    managed.wait_kept(0)
    assert "orphan_done" not in d.process.text()


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")
def test_messages_published_while_the_daemon_restarts_are_kept(box, managed, closed_sink):
    """A daemon that ends in good order leaves its lanes as they are: their producers go on."""
    closed_sink.start()
    d = managed.daemon
    client = tide.Client(d.socket)
    lane = client.lane()
    assert lane.publish_sync(b"before").name == "delivered"
    other = client.lane()
    managed.wait_kept(2)
    other.close()
    managed.wait_kept(1)
    assert d.stop() == 0
    lane.publish(b"meanwhile")
    client.close()
    managed.start()
    d.wait_no_lanes()
    assert [row["body"] for row in closed_sink.arrivals()] == ["before", "meanwhile"]
    managed.wait_kept(0)


def sealed(data, size, seals=SEALS):
    fd = os.memfd_create("lie", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, 1033, seals)  # F_ADD_SEALS
    return fd


def ring(sq=16384, words=b""):
    """A client's part of a lane, without holes."""
    return sealed(words.ljust(4096 + sq, b"\0"), 4096 + sq, SEALS | FUTURE_WRITE)


def header(abi=1, sq=16384, cq=128, name=b"events"):
    return struct.pack("<8sIIQQIIQ64s", b"tdglane1", abi, 0, 7, sq, cq, sq // 2, 99, name)


def test_lanes_passed_by_the_manager_are_not_trusted(box, managed, closed_sink):
    d = managed.daemon
    closed_sink.start()
    d.process.kill()
    size = 4096 + 128 * 32
    sq_tail = struct.pack("<Q", 8000)  # records that are none
    lies = {
        "lane-0000000000000001-0-1": (ring(), sealed(b"", size)),
        "lane-0000000000000002-0-1": (ring(), sealed(header(), size, 0)),
        "lane-0000000000000003-0-1": (ring(), sealed(header(), size - 4096)),
        "lane-0000000000000004-0-1": (ring(), sealed(header(abi=2), size)),
        "lane-0000000000000005-0-1": (ring(), sealed(header(name=b"nobody"), size)),
        "lane-0000000000000006-0-1": (ring(words=sq_tail), sealed(header(), size)),
        "lane-0000000000000007-0-1": (os.open("/dev/zero", os.O_RDONLY),),
        "lane-7-0-1": (ring(), sealed(header(), size)),
        "lane-0000000000000008-0-1x": (ring(), sealed(header(), size)),
        "stranger": (os.open("/dev/null", os.O_RDONLY),),
        "lane-0000000000000009-0-1": (ring(), sealed(header(), size)),
        "lane-000000000000000a-0-1": (sealed(b"", 4096 + 16384, SEALS | FUTURE_WRITE), sealed(header(), size)),
        "lane-000000000000000b-0-1": (ring(sq=32768), sealed(header(), size)),
        "lane-000000000000000c-0-1": (sealed(bytes(4096 + 16384), 4096 + 16384), sealed(header(), size)),
        "lane-000000000000000d-0-1": (sealed(header(), size),),
    }
    for name, fds in lies.items():
        managed.put(name, *fds)
        for fd in fds:
            os.close(fd)
    managed.start()
    wait_for(lambda: d.process.text().count("lane_not_restored") >= 10, "the lanes to be looked at")
    text = d.process.text()
    assert text.count("lane_not_restored") >= 10 and text.count("descriptor_not_known") == 5, text
    # A pool may be configured again, another binary be installed: those stay; the strangers are not ours to drop.
    wait_for(lambda: set(managed.store) == {"lane-0000000000000004-0-1", "lane-0000000000000005-0-1", "lane-7-0-1",
                                            "lane-0000000000000008-0-1x", "stranger"}, lambda: managed.store, 20)
    d.wait_ready()
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.skipif(SANITIZED, reason="sanitizers need all the address space there is")
def test_lane_there_is_no_memory_for_stays_kept(box, managed, closed_sink):
    """The next daemon may have more of it."""
    d = managed.daemon
    closed_sink.start()
    d.process.kill()
    sq, cq = 1 << 30, 128
    large = ring(sq), sealed(header(sq=sq, cq=cq), 4096 + cq * 32)
    managed.put("lane-0000000000000001-0-1", *large)
    for fd in large:
        os.close(fd)
    managed.environment["ADDRESS_SPACE"] = str(2 << 30)
    managed.start()
    wait_for(lambda: "lane_not_restored" in d.process.text(), "the lane to be looked at")
    assert 'event=lane_not_restored name=lane-0000000000000001-0-1 cause="out of memory"' in d.process.text()
    del managed.environment["ADDRESS_SPACE"]
    # Another lane comes and goes: the manager has then read the messages about the large one.
    Producer(box, d, number=1, count=10).finish()
    wait_for(lambda: any("FDSTOREREMOVE" in words for words in managed.said), "a lane to be dropped")
    assert set(managed.store) == {"lane-0000000000000001-0-1"}
    managed.restart()
    wait_for(lambda: "lanes=1 of=1" in d.process.text(), "the lane to be restored")
    managed.wait_kept(0)


def test_manager_that_does_not_read_delays_no_client(box, daemon, sink):
    d = daemon(pool([sink]))
    d.stop()
    manager = Manager(box, d, reads=False).start()
    producer = Producer(box, d, number=1, count=100, lanes=64, batch=8)
    assert producer.finish() == {"delivered": 6400}
    held = Producer(box, d, number=2, count=10, lanes=8, words=["-O", "1", "-L"])
    wait_for(lambda: len(d.rows("lanes")) == 8, "eight lanes")
    manager.read()
    manager.wait_kept(8)
    held.process.kill()
    manager.wait_kept(0)


def test_full_store_is_said_and_nothing_else(box, daemon, sink):
    d = daemon(pool([sink]))
    d.stop()
    manager = Manager(box, d, environment={"FDSTORE": "4"}).start()
    producer = Producer(box, d, number=1, count=10, lanes=4, words=["-L"])
    wait_for(lambda: producer.file.state == 4, "all delivered")
    manager.wait_kept(2)
    assert d.process.text().count("lane_not_kept") == 2 and "FileDescriptorStoreMax" in d.process.text()
    producer.process.kill()
    manager.wait_kept(0)


def test_upgraded_daemon_goes_on_with_the_store(box, managed, closed_sink):
    d = managed.daemon
    serving = Upgraded(box, d)
    producer = Producer(box, d, number=1, count=200, batch=8)
    dead = Producer(box, d, number=2, count=100, batch=8)
    producer.wait_accepted(200)
    dead.wait_accepted(100)
    managed.wait_kept(2)
    dead.process.kill()
    wait_for(lambda: orphans(d), "the orphan")
    told = len([words for words in managed.said if "FDNAME" in words])
    assert serving.upgrade().returncode == 0
    wait_for(lambda: [row["pid"] for row in orphans(d)] == [dead.process.pid], "the orphan")
    assert len([words for words in managed.said if "FDNAME" in words]) == told
    closed_sink.start()
    assert producer.finish() == {"delivered": 200}
    d.wait_no_lanes()
    managed.wait_kept(0)
    check_all_arrived([producer, dead], closed_sink)


def test_upgraded_daemon_sends_the_manager_the_missing_messages(box, daemon, sink):
    d = daemon(pool([sink]))
    d.stop()
    manager = Manager(box, d, reads=False).start()
    held = Producer(box, d, number=1, count=10, lanes=32, words=["-O", "1", "-L"])
    wait_for(lambda: len(d.rows("lanes")) == 32, "the lanes")
    Process(box, "upgrade", [program("tidegatectl"), "-s", d.admin, "upgrade"])
    wait_for(lambda: "event=taken_over" in d.process.text(), "the new daemon", 20)
    manager.read()
    manager.wait_kept(32)
    held.process.kill()
    manager.wait_kept(0)
