"""Attacks of one client through the kernel's interfaces, and clients that the daemon has disconnected: other clients
must not notice, and every accepted message must get its completion."""

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import time

import pytest

from harness import PATIENCE, SANITIZED, Process, Sink, pool, program, wait_for
from load import Producer
from tidegate_lib import Client

needs_library = pytest.mark.skipif(SANITIZED, reason="ctypes cannot load a library with a sanitizer in it")


def control_sockets(path):
    """This process's own connections to a control socket."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            s = socket.socket(fileno=os.dup(int(name)))
            if s.family == socket.AF_UNIX and s.getpeername() == str(path):
                found.append(s)
            else:
                s.close()
    return found


def hang_up(path):
    """Both sides see the end of the connection, and both live."""
    for s in control_sockets(path):
        s.shutdown(socket.SHUT_RDWR)
        s.close()


@needs_library
def test_lane_comes_back_while_the_daemon_still_finishes_it(box, daemon):
    """The daemon disconnects a client and lives on: the lane's records are in flight when the client hands the lane
    back."""
    sink = Sink(box, options=["--ack-delay", "1500"]).start()
    d = daemon(pool([sink]))
    client = Client(d.socket)
    lane = client.lane(ring_bytes=65536)
    for n in range(100):
        lane.publish(b"%d" % n, tag=n)
    wait_for(lambda: len(sink.arrivals()) == 100, "all sent")
    hang_up(d.socket)
    wait_for(lambda: [row for row in d.rows("lanes") if row["orphan"]], "the orphan")
    for n in range(100, 150):
        lane.publish(b"%d" % n, tag=n)
    with contextlib.suppress(Exception):
        lane.wait(200)
    done = lane.collect(150, timeout_ms=20000)
    assert sorted(c.tag for c in done) == list(range(150))
    assert {c.name for c in done} == {"delivered"}
    wait_for(lambda: [row for row in d.rows("lanes") if not row["orphan"]], "the lane to be its client's again")
    lane.close()
    client.close()
    assert d.stop() == 0


@needs_library
def test_lanes_of_a_server_that_forked_come_back_once(box, daemon, sink):
    """The child holds the old connection's descriptors: they must not go on saying that it hung up."""
    d = daemon(pool([sink]))
    client = Client(d.socket)
    lanes = [client.lane(), client.lane()]
    waits = select.poll()
    for lane in lanes:
        waits.register(lane.fd(), select.POLLIN)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        # The listening socket outlives the daemon, as a service manager's does: the first attempt succeeds.
        d.process.kill()
        d.start()
        wait_for(lambda: [lane.poll() for lane in lanes] and len(d.rows("lanes")) == 2, "both lanes back")
        quiet = 0
        for _ in range(200):
            if not waits.poll(50):
                quiet += 1
                if quiet == 5:
                    break
                continue
            quiet = 0
            for lane in lanes:
                lane.poll()
        assert quiet == 5, "tg_fd is readable without end"
        for lane in lanes:
            assert lane.publish_sync(b"x").name == "delivered"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    client.close()
    assert d.stop() == 0


@pytest.mark.sanitizers
def test_no_descriptors_left_is_said_and_costs_nothing(box, daemon, sink):
    d = daemon(pool([sink]))
    witness = Producer(box, d, number=1, count=10000, batch=8, rate=2000)
    witness.wait_accepted(1)
    limit = d.process.descriptors() + 20
    resource.prlimit(d.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
    crowd = []

    def come(kind, path):
        s = socket.socket(socket.AF_UNIX, kind)
        s.settimeout(10 * PATIENCE)
        s.connect(str(path))
        crowd.append(s)
        return s
    # Each one that finds no room is told and let go, at once. Admins are no user's: they take all there are.
    admins = [come(socket.SOCK_STREAM, d.admin) for _ in range(40)]
    assert b"no file descriptors left" in admins[-1].recv(4096)
    for _ in range(60):
        s = come(socket.SOCK_SEQPACKET, d.socket)
        assert b"tidegated has no file descriptors left" in s.recv(4096)
        assert s.recv(4096) == b""
    assert len([line for line in d.process.text().splitlines() if "accept_failed" in line]) <= 25
    assert witness.finish() == {"delivered": 10000}
    ticks, lines = d.process.spends(1.0)
    assert ticks < 20 and lines < 20, f"{ticks} ticks and {lines} lines in a second"
    for s in crowd:
        s.close()
    assert d.publish("-m", "x").returncode == 0
    assert d.stop() == 0


def lingering():
    """A TCP socket whose last close waits for half a minute: it holds what its peer never takes."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s = socket.create_connection(listener.getsockname())
    peer, _ = listener.accept()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    s.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            s.send(b"x" * 65536)
    return s, (peer, listener)


@pytest.mark.sanitizers
@pytest.mark.parametrize("count", (1, 3, 20))
def test_descriptors_that_take_long_to_close_delay_no_client(box, daemon, sink, count):
    d = daemon(pool([sink]))
    held = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.connect(str(d.socket))
        sockets = []
        for _ in range(count):
            s, others = lingering()
            sockets.append(s)
            held.append(others)
        frame = struct.pack("=4I", 0x74646631, 1, 6, 1) + bytes(248)  # LANE_RETURN
        d.process.freeze()
        socket.send_fds(bad, [frame], [s.fileno() for s in sockets])
        for s in sockets:
            s.close()
        d.process.thaw()
        start = time.monotonic()
        assert d.publish("-m", "x", deadline_s=20).returncode == 0
        assert time.monotonic() - start < 5 * PATIENCE
    for peer, listener in held:
        peer.close()
        listener.close()
    assert d.stop() == 0


def test_unread_log_delays_no_client(box, daemon, sink):
    """stderr is a pipe, it is full, and its reader sleeps."""
    d = daemon(pool([sink]))
    d.stop()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    d.process = Process(box, "tidegated-mute", ["sh", "-c", f"exec {program('tidegated')} -c {d.config} 2>/proc/self/fd/{writer}"],
                        pass_fds=[writer])
    wait_for(d.answers, "it to answer")
    d.wait_ready()
    assert d.publish("-m", "x", deadline_s=20).returncode == 0
    assert d.stop() == 0
    os.close(writer)
    os.close(reader)


LANE_OPEN, LANE_OPENED, LANE_CLOSE, LANE_CLOSED, LANE_RETURN, LANE_RETURNED, LANE_READY = range(2, 9)
LARGE = 16 << 20  # not made on the daemon's loop


def request(type, serial, body=b""):
    return struct.pack("=4I", 0x74646631, 1, type, serial) + body.ljust(248, b"\0")


def open_request(serial, ring_bytes, pool="events"):
    return request(LANE_OPEN, serial, struct.pack("=Q2I64s32s", ring_bytes, 0, 0, pool.encode(), b"raw"))


F_ADD_SEALS, SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x10  # SEAL, SHRINK, GROW, FUTURE_WRITE


def ring(ring_bytes):
    """The client's memory of a lane, as the daemon wants it: without holes, sealed."""
    fd = os.memfd_create("tidegate-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(4096 + ring_bytes))
    fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
    return fd


def lane_memories():
    """This process's own descriptors of lanes."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "tidegate-" in os.readlink(f"/proc/self/fd/{fd}"):
                found.add(int(fd))
    return found


class RawClient:
    def __init__(self, d):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(30 * PATIENCE)
        self.socket.connect(str(d.socket))

    def answer(self):
        """Type, serial and lane (or error) of the next answer, and its descriptors."""
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 3)
        _, _, type, serial, number = struct.unpack_from("=4IQ", data)
        return type, serial, number, fds

    def open(self, serial, ring_bytes):
        """Asks for a lane; the answer is to come."""
        fd = ring(ring_bytes)
        socket.send_fds(self.socket, [open_request(serial, ring_bytes)], [fd])
        os.close(fd)

    def ask(self, frame, fds=()):
        socket.send_fds(self.socket, [frame], list(fds))
        return self.answer()


@pytest.mark.sanitizers
def test_requests_sent_ahead_are_answered_in_order(box, daemon, sink):
    """A large lane is made on a worker thread; later requests wait for it."""
    d = daemon(pool([sink]))
    raw = RawClient(d)
    d.process.freeze()
    sizes = (LARGE, 16384, LARGE, 262144, 16384)
    for serial, size in enumerate(sizes):
        raw.open(serial, size)
    raw.socket.send(request(LANE_CLOSE, 5, struct.pack("=Q", 999)))
    d.process.thaw()
    answers = [raw.answer() for _ in range(6)]
    assert [a[:2] for a in answers] == [(LANE_OPENED, serial) for serial in range(5)] + [(1, 5)]
    assert len({a[2] for a in answers[:5]}) == 5
    for *_, fds in answers:
        for fd in fds:
            os.close(fd)
    raw.socket.close()
    d.wait_no_lanes()
    assert d.stop() == 0


@pytest.mark.sanitizers
def test_client_that_hangs_up_before_its_lane_is_made_leaves_nothing(box, daemon, sink):
    d = daemon(pool([sink]))
    before = d.process.descriptors()
    for _ in range(10):
        raw = RawClient(d)
        raw.open(1, LARGE)
        raw.open(2, LARGE)
        raw.socket.close()
    wait_for(lambda: d.ctl("stats")["stats"]["lanes_opened"] >= 10, "the lanes to be made")
    d.wait_no_lanes()
    wait_for(lambda: d.process.descriptors() <= before, lambda: f"{before} descriptors, {d.process.descriptors()}")
    assert d.publish("-m", "x").returncode == 0
    assert d.stop() == 0


@needs_library
def test_lane_handed_back_by_a_client_that_hangs_up_is_delivered(box, daemon):
    """The daemon dies with records in a large ring, and the client hangs up before the answer to its hand-back."""
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    client = Client(d.socket)
    before = lane_memories()
    lane = client.lane(ring_bytes=LARGE)
    ring, answers = sorted(lane_memories() - before, key=lambda fd: "ring" not in os.readlink(f"/proc/self/fd/{fd}"))
    d.process.kill()
    for n in range(500):
        lane.publish(b"%d" % n, tag=n)
    d.start()
    raw = RawClient(d)
    d.process.freeze()
    socket.send_fds(raw.socket, [request(LANE_RETURN, 1)], [ring, answers])
    raw.socket.close()
    d.process.thaw()
    wait_for(lambda: len(sink.arrivals()) == 500, lambda: f"500 arrivals, {len(sink.arrivals())}")
    d.wait_no_lanes()
    assert d.stop() == 0
    client.close()
