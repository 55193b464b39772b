"""A real nats-server for the tests, and consumers that speak its protocol by hand."""

import json
import os
import socket
import threading

from harness import PATIENCE, Broker, libconfig, wait_for  # noqa: F401
from load import Arrival

FILLER = bytes(ord("!") + number % 90 for number in range(90 + (1 << 17)))


class Connection:
    """A client. Messages come back as (subject, reply, headers, body)."""

    def __init__(self, port, user=None, password=None):
        self.socket = socket.create_connection(("127.0.0.1", port), 10 * PATIENCE)
        self.file = self.socket.makefile("rb")
        self.info = json.loads(self.file.readline()[5:])
        self.inboxes = 0
        options = {"verbose": False, "headers": True, "no_responders": True}
        if user:
            options.update(user=user, **{"pass": password})
        self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        self.until(b"PONG")

    def send(self, data):
        self.socket.sendall(data)

    def until(self, wanted):
        while (line := self.line()) != wanted:
            assert not line.startswith(b"-ERR"), line

    def line(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("closed by nats-server")
        if line == b"PING\r\n":
            self.send(b"PONG\r\n")
        return line.rstrip(b"\r\n")

    def message(self):
        while True:
            words = self.line().split()
            if words and words[0] in (b"MSG", b"HMSG"):
                break
        size = int(words[-1])
        head = int(words[-2]) if words[0] == b"HMSG" else 0
        body = self.file.read(size + 2)[:size]
        reply = words[3] if len(words) > (5 if head else 4) else b""
        return words[1].decode(), reply, body[:head], body[head:]

    def request(self, subject, body=None):
        self.inboxes += 1
        inbox = f"_INBOX.test.{os.getpid()}.{self.inboxes}"
        data = json.dumps(body).encode() if body is not None else b""
        self.send(f"SUB {inbox} r{self.inboxes}\r\nUNSUB r{self.inboxes} 1\r\nPUB {subject} {inbox} {len(data)}\r\n"
                  .encode() + data + b"\r\n")
        while True:
            to, _, _, answer = self.message()
            if to == inbox:
                return json.loads(answer)

    def close(self):
        self.file.close()
        self.socket.close()


class NatsServer(Broker):
    """nats-server with JetStream on files. lines: of its configuration."""

    def __init__(self, box, name="nats", port=None, lines=(), maker=(None, None)):
        super().__init__(box, name, port)
        self.maker = maker
        self.config = box.path / f"{name}.conf"
        self.config.write_text("\n".join([f'listen: "127.0.0.1:{self.port}"',
                                          f'jetstream {{ store_dir: "{box.path / name}" }}', *lines]) + "\n")

    def argv(self):
        return ["nats-server", "-c", self.config]

    def connect(self):
        return Connection(self.port, *self.maker)

    def stream(self, name="LOAD", subjects=("load.>",), **more):
        connection = self.connect()
        answer = connection.request(f"$JS.API.STREAM.CREATE.{name}",
                                    {"name": name, "subjects": list(subjects), "storage": "file", **more})
        connection.close()
        assert answer.get("did_create"), answer
        return self


class NatsCluster:
    """A cluster of nats-servers and a stream that is replicated on each. lines: of each one's configuration."""

    def __init__(self, box, count=3, lines=lambda number: ()):
        ports = [box.port() for _ in range(count)]
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        self.servers = [NatsServer(box, f"n{number}", lines=[
            f"server_name: n{number}", f'cluster {{ name: tide, listen: "127.0.0.1:{port}", routes: [ {routes} ] }}', *lines(number)])
            for number, port in enumerate(ports)]
        for server in self.servers:
            server.start()

    def api(self, subject, body=None, but=None):
        """The answer of JetStream's API through any server but one, or None while it has no leader."""
        server = next(server for server in self.servers if server is not but)
        connection = server.connect()
        connection.socket.settimeout(2)
        try:
            answer = connection.request(f"$JS.API.{subject}", body)
        except (OSError, ValueError):  # no answer: there is no leader
            return None
        finally:
            connection.close()
        return None if "error" in answer else answer

    def stream(self, name="LOAD", subjects=("load.>",), copies=3):
        """Elections among servers that have just started take seconds."""
        config = {"name": name, "subjects": list(subjects), "storage": "file", "num_replicas": copies}
        wait_for(lambda: self.api(f"STREAM.CREATE.{name}", config), f"stream {name} to be made", 60, 0.2)

    def leader(self, stream="LOAD", but=None):
        """The server that leads it, once there is one."""
        def look():
            info = self.api(f"STREAM.INFO.{stream}", but=but)
            return info and info.get("cluster", {}).get("leader")
        name = wait_for(look, f"a leader of {stream}", 60, 0.2)
        return next(server for server in self.servers if server.name == name)


def arrival(body):
    """A load program's body (record.h), checked byte by byte; None: a stranger's."""
    try:
        producer, lane, sequence = map(int, body.split(b" ", 3)[:3])
    except ValueError:
        return None
    head = b"%d %d %d " % (producer, lane, sequence)
    start = (producer * 7 + lane * 13 + sequence * 31) % 90
    whole = head[:len(body)] + FILLER[start + len(head):start + len(body)]
    return Arrival(producer, lane, sequence, len(body), body == whole, 0, 0)


class Consumer:
    """A subscriber's interface for check_all_arrived() and wait_all_arrived()."""

    def __init__(self, name):
        self.name = name
        self.file = self
        self.list = []
        self.foreign = 0

    def take(self, body):
        one = arrival(body)
        if one is None:
            self.foreign += 1
        else:
            self.list.append(one)

    def count(self):
        return len(self.list)

    def arrivals(self):
        return self.list

    def strangers(self):
        return self.foreign


class StreamReader(Consumer):
    """Everything a stream has, pulled through a consumer of JetStream's."""

    BATCH = 500

    def __init__(self, server, stream="LOAD"):
        super().__init__(f"{server.name}-{stream}")
        connection = server.connect()
        state = connection.request(f"$JS.API.STREAM.INFO.{stream}")["state"]
        made = connection.request(f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.all",
                                  {"stream_name": stream, "config": {"durable_name": "all", "ack_policy": "none",
                                                                     "deliver_policy": "all"}})
        assert "error" not in made, made
        connection.send(b"SUB pulled 1\r\n")
        left = state["messages"]
        while left > 0:
            batch = min(left, self.BATCH)
            ask = json.dumps({"batch": batch}).encode()
            connection.send(b"PUB $JS.API.CONSUMER.MSG.NEXT.%s.all pulled %d\r\n%s\r\n" % (stream.encode(), len(ask), ask))
            for _ in range(batch):
                self.take(connection.message()[3])
            left -= batch
        connection.close()


class Subscriber(Consumer):
    """A core subscription, read by a thread."""

    def __init__(self, server, subject=">"):
        super().__init__(f"{server.name}-subscriber")
        self.messages = []
        self.connection = server.connect()
        self.connection.send(f"SUB {subject} 1\r\nPING\r\n".encode())
        self.connection.until(b"PONG")
        self.connection.socket.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            while True:
                message = self.connection.message()
                self.messages.append(message)
                self.take(message[3])
        except (OSError, ValueError, ConnectionError):
            pass

    def wait(self, count):
        wait_for(lambda: len(self.messages) >= count, lambda: f"{count} messages, {len(self.messages)} came")
        return self.messages
