"""redis-server as Debian packages it, with the test's own folder and configuration, and its readers."""

import socket

from harness import Broker, wait_for


class Connection:
    """As much of RESP2 as the tests need. Errors come back as RedisError, not raised."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.lines = self.socket.makefile("rb")

    def send(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    def receive(self):
        line = self.lines.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the server is gone")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.lines.read(int(rest) + 2)[:-2]
        return None if rest == b"-1" else [self.receive() for _ in range(int(rest))]

    def __call__(self, *words):
        self.send(*words)
        return self.receive()

    def close(self):
        self.lines.close()
        self.socket.close()


class RedisError(Exception):
    pass


class Redis(Broker):
    """A redis-server. durable: acknowledged writes survive kill -9 (appendfsync always)."""

    def __init__(self, box, name="redis", port=None, lines=(), durable=False, options=()):
        super().__init__(box, name, port)
        self.options = options
        self.folder = box.path / name
        self.folder.mkdir()
        durability = ["appendonly yes", "appendfsync always"] if durable else ["appendonly no"]
        self.config = self.folder / "redis.conf"
        self.config.write_text("\n".join([f"port {self.port}", "bind 127.0.0.1", 'save ""', f"dir {self.folder}",
                                          *durability, *lines]) + "\n")

    def argv(self):
        return ["redis-server", self.config, *self.options]

    def __call__(self, *words, user=None):
        connection = Connection(self.port)
        try:
            if user is not None:
                assert connection("AUTH", *user) == "OK"
            return connection(*words)
        finally:
            connection.close()

    def wait_loaded(self):
        wait_for(lambda: self("PING") == "PONG", f"{self.name} to have loaded its data", 30)

    def must(self, *words):
        answer = self(*words)
        assert not isinstance(answer, RedisError), f"{words}: {answer}"
        return answer

    def entries(self, stream):
        """[(id, {field: value})] in order; a field that is there twice fails."""
        found = []
        for identity, flat in self.must("XRANGE", stream, "-", "+"):
            fields = dict(zip(flat[::2], flat[1::2]))
            assert 2 * len(fields) == len(flat), f"{self.name}: {stream} {identity}: {flat}"
            found.append((identity.decode(), fields))
        return found

    def length(self, pattern="load/*"):
        """Entries in all streams of the pattern."""
        return sum(self.must("XLEN", stream) for stream in self.must("KEYS", pattern))

    def info(self, section, key):
        """INFO's value, or None."""
        for line in self("INFO", section).decode().splitlines():
            if line.startswith(key + ":"):
                return line.partition(":")[2]
        return None

    def connections(self):
        """The number of connections ever accepted, including this one."""
        return int(self.info("stats", "total_connections_received"))


class StreamArrivals:
    """The load programs' streams, one a lane, as load.py's check_all_arrived wants them."""

    def __init__(self, redis):
        self.redis = redis
        self.name = redis.name
        self.record = None

    def body_starts(self):
        for stream in self.redis.must("KEYS", "load/*"):
            for _, fields in self.redis.entries(stream):
                yield fields[b"body"][:64].decode()


class Subscriber:
    """Reads the channels of a pattern from the moment it exists."""

    def __init__(self, redis, pattern):
        self.connection = Connection(redis.port)
        assert self.connection("PSUBSCRIBE", pattern)[0] == b"psubscribe"
        self.name = redis.name
        self.record = None
        self.bodies = []

    def read(self, count):
        while len(self.bodies) < count:
            kind, _, _, body = self.connection.receive()
            assert kind == b"pmessage"
            self.bodies.append(body)
        return self.bodies

    def body_starts(self):
        return [body[:64].decode() for body in self.bodies]
