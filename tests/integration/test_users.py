"""Limits of one user: an ordinary account takes all it can get, and every other user still has enough."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import resource
import socket
import struct
import time
import traceback

import pytest

import tidegate_lib as tide
from harness import FULL, PATIENCE, SANITIZED, pool, wait_for

NOBODY = 65534
LANE_OPEN, LANE_OPENED, LANE_CLOSE, LANE_CLOSED, LANE_RETURN = range(2, 7)

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
              pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")]


def frame(kind, serial, body=b""):
    return struct.pack("=4I", 0x74646631, 1, kind, serial) + body.ljust(248, b"\0")


def open_frame(serial, ring_bytes=16384, name="events"):
    return frame(LANE_OPEN, serial, struct.pack("=Q2I64s32s", ring_bytes, 0, 0, name.encode(), b"raw"))


def connect(path):
    """From the folder of the socket: another user cannot go through those above it."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(20 * PATIENCE)
    s.connect(pathlib.Path(path).name)
    return s


def take(s):
    """The words of an error, or the descriptors of an answer."""
    try:
        data, fds, _, _ = socket.recv_fds(s, 4096, 3)
    except ConnectionResetError:  # the daemon did not read our request: the reset comes before its error
        data, fds, _, _ = socket.recv_fds(s, 4096, 3)
    kind = struct.unpack_from("=I", data, 8)[0] if data else 0
    return (data[24:].split(b"\0")[0].decode() if kind == 1 else ""), fds


def record(timeout_ms):
    check = (0x74646772 ^ 0) & 0xffffffff
    head = struct.pack("=IIQQIIHHHHII", 56, check, 0, time.clock_gettime_ns(time.CLOCK_MONOTONIC), timeout_ms, 1, 1, 0,
                       0, 0, 0, 0)
    return head + b"tx" + bytes(6)


F_ADD_SEALS, SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x10  # SEAL, SHRINK, GROW, FUTURE_WRITE


def ask_lane(s, serial, ring_bytes=16384, name="events", timeout_ms=0):
    """Asks for a lane; timeout_ms: with a record in it that has so long."""
    ring = os.memfd_create("tidegate-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(ring, bytes(4096 + ring_bytes))
    if timeout_ms:
        os.pwrite(ring, record(timeout_ms), 4096)
        os.pwrite(ring, struct.pack("=Q", 56), 0)  # sq_tail
    fcntl.fcntl(ring, F_ADD_SEALS, SEALS)
    socket.send_fds(s, [open_frame(serial, ring_bytes, name)], [ring])
    os.close(ring)


class Other:
    """Runs a function as another user in a process of its own, which says what it returns and stays until it is ended."""

    def __init__(self, d, work, uid=NOBODY):
        os.chmod(pathlib.Path(d.socket).parent, 0o755)
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reader)
                os.chdir(pathlib.Path(d.socket).parent)
                resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                kept = []
                os.write(writer, json.dumps(work(d, kept)).encode() + b"\n")
                os.close(writer)
                while True:
                    time.sleep(1000)
            except BaseException:  # noqa: BLE001: nothing of the parent's may run here
                os.write(writer, json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as f:
            self.said = json.loads(f.readline())
        if isinstance(self.said, dict) and "error" in self.said:
            self.end()
            raise AssertionError(self.said["error"])

    def end(self):
        if self.pid:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        self.pid = 0


@pytest.fixture
def other():
    others = []

    def begin(d, work, uid=NOBODY):
        others.append(Other(d, work, uid))
        return others[-1]
    yield begin
    for one in others:
        one.end()


def take_lanes(d, kept, timeout_ms=0, name="events", connections=5):
    """All lanes there are, over some connections; how many, and why no more."""
    count, words = 0, ""
    for _ in range(connections):
        s = connect(d.socket)
        kept.append(s)
        for serial in range(1, 2000):
            ask_lane(s, serial, name=name, timeout_ms=timeout_ms)
            words, fds = take(s)
            if len(fds) < 3:
                break
            for fd in fds:
                os.close(fd)
            count += 1
    return count, words


def limit_lines(d, limit):
    return [line for line in d.process.text().splitlines() if "limit_reached" in line and f"limit={limit} " in line]


def test_lanes_that_one_user_leaves_behind_leave_half_to_others(daemon, sink, other):
    away = pool(["127.0.0.1:1"], name="away")
    d = daemon(pool([sink]), away, ready=False, limits={"lanes": 200, "lanes_per_client": 100})
    d.wait_ready(sink)
    attacker = other(d, lambda d, kept: take_lanes(d, kept, timeout_ms=0xffffffff, name="away"))
    count, words = attacker.said
    assert count == 100
    assert re.fullmatch(r"user 65534 has 100 lanes and asks for 1 more; 100 of 200 \(limits.lanes\) are free: .*"
                        r"limits.lanes_per_user.*", words), words
    attacker.end()
    wait_for(lambda: sum(lane["orphan"] for lane in d.rows("lanes")) == 100, "100 orphans")
    for _ in range(3):
        assert d.publish("-m", "x").returncode == 0
    with contextlib.closing(tide.Client(d.socket)) as client:
        lanes = [client.lane(ring_bytes=16384) for _ in range(50)]
        assert lanes[-1].publish_sync(b"x").name == "delivered"
    # The lanes of ended processes still count for their user.
    assert other(d, take_lanes).said[0] == 0
    lines = limit_lines(d, "limits.lanes_per_user")
    assert lines and "uid=65534" in lines[0] and "pid=" in lines[0] and "value=200" in lines[0] and len(lines) <= 20
    assert len([user for user in d.rows("users") if user["uid"] == NOBODY and user["orphans"] == 100]) == 1


def test_records_of_49_days_go_soon_after_their_producer(daemon, sink, other):
    away = pool(["127.0.0.1:1"], name="away")
    d = daemon(pool([sink]), away, ready=False, limits={"lanes": 40, "orphan_ms": 1000})
    d.wait_ready(sink)
    attacker = other(d, lambda d, kept: take_lanes(d, kept, timeout_ms=0xffffffff, name="away"))
    assert attacker.said[0] == 20
    wait_for(lambda: [row["records"] for row in d.rows("lanes")] == [1] * 20, "the records")
    assert [row["expired"] for row in d.rows("pools") if row["name"] == "away"] == [0]
    attacker.end()
    d.wait_no_lanes()
    assert [row["expired"] for row in d.rows("pools") if row["name"] == "away"] == [20]
    wait_for(lambda: "orphan_done" in d.process.text(), "the end to be told")
    said = next(line for line in d.process.text().splitlines() if "orphan_done" in line)
    assert "uid=65534" in said and "expired=1 " in said and int(re.search(r" ms=(\d+)", said)[1]) >= 1000, said
    assert other(d, take_lanes).said[0] == 20


def test_silent_connections_make_room_for_others(daemon, sink, other):
    d = daemon(pool([sink]), limits={"clients": 60})

    def crowd(d, kept):
        for _ in range(100):
            kept.append(connect(d.socket))
        return take(kept[0])[0]
    words = other(d, crowd).said
    assert "user 65534" in words and "limits.clients is 60" in words, words
    # Its later ones took the places of its earlier ones, not of others.
    assert d.publish("-m", "x").returncode == 0
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            client = stack.enter_context(contextlib.closing(tide.Client(d.socket)))
            assert client.lane(ring_bytes=16384).publish_sync(b"x").name == "delivered"
        users = {user["uid"]: user for user in d.rows("users")}
        assert users[NOBODY]["connections"] == 30 and users[0]["connections"] == 12
    assert d.rows("stats")["laneless_ended"] >= 70


def test_full_house_of_silent_connections_of_many_users_makes_room(daemon, sink, other):
    d = daemon(pool([sink]), limits={"clients": 8})

    def one_each(d, kept):
        kept.append(connect(d.socket))
    for uid in range(2001, 2013):
        other(d, one_each, uid)
    wait_for(lambda: sum(user["connections"] for user in d.rows("users")) == 8, "a full house")
    assert d.publish("-m", "x").returncode == 0


def test_connection_without_a_lane_is_ended_in_words_and_the_library_comes_back(daemon, sink):
    d = daemon(pool([sink]), limits={"laneless_ms": 200})
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.settimeout(20 * PATIENCE)
    silent.connect(str(d.socket))
    with contextlib.closing(tide.Client(d.socket)) as client, contextlib.closing(tide.Client(d.socket)) as busy:
        kept = busy.lane()
        words, _ = take(silent)
        assert f"process {os.getpid()} of user 0 had no lane for 2" in words and "limits.laneless_ms is 200" in words
        assert silent.recv(1) == b""
        wait_for(lambda: sum(user["connections"] for user in d.rows("users")) == 1, "the silent ones to be ended")
        lane = client.lane()
        assert lane.publish_sync(b"x").name == "delivered"
        lane.close()
        wait_for(lambda: sum(user["connections"] for user in d.rows("users")) == 1, "the one that closed its lane, too")
        assert client.lane().publish_sync(b"x").name == "delivered"
        assert kept.publish_sync(b"x").name == "delivered"


def lingering():
    """A TCP socket whose last close waits: it holds what its peer never takes. Five seconds, since it may be ours."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
    s.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            s.send(b"x" * 65536)
    return s, (peer, listener)


# It has twenty sockets linger one after the other: two minutes.
LONG = pytest.mark.skipif(not FULL, reason="takes two minutes: TG_FULL=1")


@pytest.mark.parametrize("kind, body", (pytest.param(LANE_CLOSE, b"", marks=LONG), (LANE_RETURN, b""), (0, None)),
                         ids=("close", "return", "empty"))
def test_descriptors_that_nobody_asked_for_fill_nothing(daemon, sink, other, kind, body):
    """Sockets that linger, with requests and with an empty packet; then as many descriptors as a packet can carry."""
    d = daemon(pool([sink]))
    before = d.process.descriptors()
    resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE, (1024, 1024))

    def send(d, kept):
        null = os.open("/dev/null", os.O_RDONLY)
        for count in (1, 1, 1, 1, 1, 1, 20):
            bad = connect(d.socket)
            sockets = [lingering() for _ in range(count)]
            ask_lane(bad, 1, 32 << 20)  # mapped beside the loop: the daemon reads the next frame after we have closed our sockets
            kept += [peers for _, peers in sockets]
            socket.send_fds(bad, [b"" if body is None else frame(kind, 1)], [s.fileno() for s, _ in sockets])
            for s, _ in sockets:
                s.close()
            bad.close()
        words = set()
        for _ in range(200):
            bad = connect(d.socket)
            with contextlib.suppress(OSError):  # ETOOMANYREFS: the kernel's own limit of one user
                socket.send_fds(bad, [b"" if body is None else frame(kind, 1)], [null] * 253)
                words.add(take(bad)[0])
            bad.close()
        return sorted(words)
    words = other(d, send).said
    if body is None:
        assert words == ["a control frame could not be understood"]
    else:
        assert len(words) == 1 and "user 65534" in words[0] and "descriptors came with a request" in words[0], words
    wait_for(lambda: d.process.descriptors() <= before + 1, lambda: f"{before}: {d.process.descriptors()} are left")
    assert d.publish("-m", "x").returncode == 0
    wait_for(lambda: [user for user in d.rows("users") if user["descriptors"] > 2] == [], "nothing held against anyone")


def test_memory_and_descriptors_of_one_user_have_limits_of_their_own(daemon, sink, other):
    d = daemon(pool([sink]), limits={"memory_per_user": 200000, "descriptors_per_user": 8})

    def lanes(ring):
        def work(d, kept):
            s = connect(d.socket)
            kept.append(s)
            for n in range(10):
                ask_lane(s, n + 1, ring)
                words, fds = take(s)
                if len(fds) < 3:
                    return n, words
                kept.append(fds)
            return 10, ""
        return work
    count, words = other(d, lanes(65536)).said
    assert count == 1 and "user 65534 has" in words and "limits.memory_per_user is 200000" in words, words
    count, words = other(d, lanes(16384), 2002).said
    assert count == 2 and "user 2002 has 8 file descriptors" in words and "limits.descriptors_per_user is 8" in words
    assert limit_lines(d, "limits.memory_per_user") and limit_lines(d, "limits.descriptors_per_user")
