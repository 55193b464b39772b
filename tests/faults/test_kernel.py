"""The kernel alone: plain sockets under the same faults, with the kernel's defaults, with
TCP_USER_TIMEOUT alone, and with keepalive as well, beside a tidegated in the same network. The figures
make the table "left to the kernel and left to tidegate"."""

import socket
import struct
import time

import pytest

import report
from harness import FULL, wait_for
from story import lasts

LIMIT_S = 30 if FULL else 6
USER_TIMEOUT_MS = 3000


class PlainClient:
    """A typical client: it connects, writes when it has a message, and trusts its socket."""

    def __init__(self, who, port, every_s, user_timeout=False, keepalive=False):
        self.who, self.every_s = who, every_s
        self.next = 0.0
        self.socket = socket.create_connection(("127.0.0.1", port), 3)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if user_timeout:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        if keepalive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
                self.socket.setsockopt(socket.IPPROTO_TCP, option, value)
        # An MQTT session, so that the sink reads what follows.
        name = who.encode()[:12].replace(b" ", b"-")
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack(">H", len(name)) + name
        self.socket.sendall(b"\x10" + bytes([len(body)]) + body)
        self.socket.setblocking(False)
        self.ended_s = None
        self.error = None

    def step(self, since):
        if self.ended_s is not None:
            return
        try:
            now = time.monotonic()
            if self.every_s == 0 or (self.every_s and now >= self.next):
                self.next = now + (self.every_s or 0)
                payload = bytes(8192 if self.every_s == 0 else 64)
                body = b"\x00\x01t" + payload
                length = len(body)
                packet = b"\x30" + (bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])) + body
                try:
                    self.socket.send(packet)
                except BlockingIOError:
                    pass
            try:
                if self.socket.recv(4096) == b"":
                    raise ConnectionResetError(0, "closed")
            except BlockingIOError:
                pass
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "")
        except OSError as error:
            self.ended_s = time.monotonic() - since
            self.error = type(error).__name__ if error.errno is None else {110: "ETIMEDOUT", 104: "ECONNRESET",
                                                                           32: "EPIPE"}.get(error.errno, str(error.errno))

    def verdict(self, observed_s):
        if self.ended_s is not None:
            return f"{self.ended_s:.1f} s ({self.error})"
        state = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return f"> {observed_s:.0f} s, {'still ESTABLISHED' if state == 1 else f'state {state}'}"


CASES = {
    # fault: (seconds between messages, None: idle, 0: as fast as it may; the fault)
    "vanished, idle": (None, "cut"),
    "vanished, 1 message a second": (1, "cut"),
    "vanished, saturated": (0, "cut"),
    "alive and stopped (SIGSTOP), 1 message a second": (1, "freeze"),
    "alive and reading nothing, saturated (zero window)": (0, "freeze"),
}


@pytest.mark.parametrize("case", CASES)
def test_beside_the_kernel(story, case):
    every_s, fault = CASES[case]
    victim, other = story.broker("sink", "a", options=["--receive-buffer", "65536"]).up(), story.broker("sink", "b").up()
    daemon = story.tidegated([victim, other])
    story.load({None: "idle", 1: "trickle", 0: "saturated"}[every_s])
    if every_s is not None:
        story.wait_delivered_by(victim, more=1)
    clients = [PlainClient("kernel defaults", victim.port, every_s),
               PlainClient("user timeout", victim.port, every_s, user_timeout=True),
               PlainClient("both", victim.port, every_s, user_timeout=True, keepalive=True)]
    lasts(0.5, "sessions to be quiet", lambda: [client.step(time.monotonic()) for client in clients])
    assert all(client.ended_s is None for client in clients)
    if fault == "cut":
        story.network.cut(victim.port)
    else:
        victim.freeze()
    began, wall = time.monotonic(), time.time()
    lasts(LIMIT_S, "the kernel to notice", lambda: [client.step(began) for client in clients])
    observed = time.monotonic() - began
    wait_for(lambda: story.left_at(victim, wall), "tidegated to leave the broker", 5)
    left = story.left_at(victim, wall) - wall
    died = story.deaths(victim, wall)
    tidegate = f"left after {left:.1f} s, " + (
        f"given up after {died[0]['at'] - wall:.1f} s" if died else f"kept for more than {observed:.0f} s")
    story.figures.clear()
    story.note(case=case, **{report.KERNEL: {
        "kernel's defaults": clients[0].verdict(observed),
        f"TCP_USER_TIMEOUT {USER_TIMEOUT_MS} ms": clients[1].verdict(observed),
        "and keepalive 1 s / 1 s / 3": clients[2].verdict(observed),
        "tidegate, defaults": tidegate}})
    for client in clients:
        client.socket.close()
    if fault == "cut":
        story.network.heal(victim.port)
    else:
        victim.thaw()
    daemon.wait_ready(victim, 20)
    assert set(story.finish()) <= {"delivered"}
    assert clients[0].ended_s is None, "the kernel's defaults did notice: the table's first column is wrong"
    assert left <= story.within(3.0)
