"""A raw MQTT client: it can send invalid bytes and sees every packet."""

import errno
import socket
import struct

from harness import PATIENCE

CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 5, 6, 7, 9, 11, 13, 14
PING = b"\xc0\x00"


def length(n):
    out = bytearray()
    while True:
        n, low = divmod(n, 128)
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(value)) + value


def packet(head, body=b""):
    return bytes([head]) + length(len(body)) + body


def user_property(name, value):
    return b"\x26" + text(name) + text(value)


def connect_packet(version=4, client="raw", flags=2, keepalive=0, user=None, password=None, properties=b"", level=None):
    flags |= (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    body = text("MQTT") + bytes([version if level is None else level, flags]) + struct.pack(">H", keepalive)
    if version == 5:
        body += length(len(properties)) + properties
    body += text(client)
    body += b"".join(text(word) for word in (user, password) if word is not None)
    return packet(0x10, body)


def publish_packet(version, number, body=b"body", topic="t", qos=1, dup=False, retain=False, properties=b""):
    head = 0x30 | (8 if dup else 0) | qos << 1 | (1 if retain else 0)
    rest = text(topic) + (struct.pack(">H", number) if qos else b"")
    if version == 5:
        rest += length(len(properties)) + properties
    return packet(head, rest + (body.encode() if isinstance(body, str) else body))


class Raw:
    """A connection to a sink. Everything received waits at most `patience` seconds."""

    def __init__(self, address, version=4, connect=True, patience=10, receive_buffer=None, **options):
        self.version = version
        self.buffer = b""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(patience * PATIENCE)
        self.socket.connect(address)
        self.connack = None
        if connect:
            self.send(connect_packet(version, **options))
            kind, _, self.connack = self.receive()
            assert kind == CONNACK

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def publish(self, number, body=b"body", **options):
        self.send(publish_packet(self.version, number, body, **options))

    def ping(self):
        self.send(PING)

    def receive(self):
        """The next packet as (type, flags, body)."""
        while True:
            for size in range(1, 5):
                if len(self.buffer) > size and self.buffer[size] < 0x80:
                    need = 1 + size + sum((self.buffer[1 + i] & 0x7F) << 7 * i for i in range(size))
                    if len(self.buffer) >= need:
                        whole, self.buffer = self.buffer[:need], self.buffer[need:]
                        return whole[0] >> 4, whole[0] & 15, whole[1 + size:]
                    break
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"closed, with {self.buffer!r} left")
            self.buffer += data

    def acks(self, count):
        """The next `count` packets, all PUBACKs: their packet ids and codes."""
        result = []
        for _ in range(count):
            kind, _, body = self.receive()
            assert kind == PUBACK, kind
            result.append((struct.unpack(">H", body[:2])[0], body[2] if len(body) > 2 else 0))
        return result

    def ids(self, count):
        return [number for number, _ in self.acks(count)]

    def nothing_waits(self):
        """Whether there is nothing to read now."""
        if self.buffer:
            return False
        try:
            return self.at_once(lambda: self.socket.recv(1, socket.MSG_PEEK)) is None
        except BlockingIOError:
            return True

    def at_once(self, call):
        """Calls without waiting; with a timeout set, MSG_DONTWAIT would wait all the same."""
        patience = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            return call()
        finally:
            self.socket.settimeout(patience)

    def end(self):
        """Reads to the end: ("fin" or "rst", what came before)."""
        data = self.buffer
        try:
            while more := self.socket.recv(65536):
                data += more
            return "fin", data
        except OSError as error:
            assert error.errno == errno.ECONNRESET, error
            return "rst", data

    def send_until_full(self, data, start=0):
        """Writes copies of data until the socket takes no more; returns how many bytes went. The first
        copy goes on where `start` bytes had been written before."""
        sent, at = 0, start % len(data)
        while True:
            try:
                n = self.at_once(lambda: self.socket.send(data[at:]))
            except BlockingIOError:
                return sent
            sent += n
            at = (at + n) % len(data)
