"""Debian's RabbitMQ, on the test's own ports and folders, and readers of its queues."""

import os
import pathlib
import signal
import subprocess

from harness import PATIENCE, Broker, Process, have, listens, wait_for

SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
CTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"


def available():
    return os.path.exists(SERVER) and have("epmd")


def children(pid):
    try:
        return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


class Tree(Process):
    """A program started by a script: the script's children end with it."""

    def descendants(self):
        found, todo = [], [self.pid]
        while todo:
            more = children(todo.pop())
            found += more
            todo += more
        return found

    def signal_all(self, number):
        for pid in [*self.descendants(), self.pid]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def kill(self):
        if self.alive():
            self.signal_all(signal.SIGKILL)
        super().kill()

    def freeze(self):
        self.signal_all(signal.SIGSTOP)
        self.frozen = True

    def thaw(self):
        self.signal_all(signal.SIGCONT)
        self.frozen = False


class Rabbit(Broker):
    """A RabbitMQ. It takes seconds to start: let many tests share one, each with names of its own."""

    def __init__(self, box, name="rabbit", lines=(), plugins=()):
        super().__init__(box, name, None)
        self.folder = box.path / name
        for part in ("mnesia", "log"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "rabbitmq.conf").write_text("\n".join(
            [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "log.console = false", "log.file = broker.log", *lines]) + "\n")
        (self.folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        self.epmd_port = box.port()
        self.environment = {
            **os.environ,
            "HOME": str(self.folder),
            # By address: a bare machine may have no name for itself.
            "RABBITMQ_NODENAME": f"{name}{self.port}@127.0.0.1",
            "RABBITMQ_USE_LONGNAME": "true",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(box.port()),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        # In the foreground and ours, or the first Erlang program would leave one running for good.
        Process(box, f"{name}-epmd", ["epmd", "-port", self.epmd_port, "-address", "127.0.0.1"])
        wait_for(lambda: listens(self.epmd_port), "epmd to listen")

    def argv(self):
        return [SERVER]

    def start(self):
        self.starts += 1
        self.process = Tree(self.box, f"{self.name}-{self.starts}", self.argv(), env=self.environment)
        wait_for(lambda: listens(self.port) or not self.process.alive(), f"{self.name} to listen on {self.port}", 60, 0.05)
        assert self.process.alive(), f"{self.name} does not start:\n{self.process.text()}"
        return self

    def stop(self):
        self.ctl("stop_app")
        self.process.kill()

    def ctl(self, *words):
        """rabbitmqctl: its output."""
        result = subprocess.run([CTL, "-q", *words], env=self.environment, capture_output=True, text=True,
                                timeout=60 * PATIENCE, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, f"rabbitmqctl {' '.join(words)}: {result.stdout}{result.stderr}"
        return result.stdout

    def eval(self, *expressions):
        """Evaluates Erlang in the broker and returns the output; a rabbitmqctl command would cost most of a second."""
        return self.ctl("eval", ", ".join(expressions) + ".")

    def log(self):
        path = self.folder / "log" / "broker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def declare(self, *things):
        """("queue", name), ("exchange", name, type), ("internal", name, type), ("bind", exchange, queue, key)"""
        self.eval(*(declaration(*thing) for thing in things))

    def connect(self, **options):
        import pika  # pylint: disable=import-outside-toplevel
        return pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self.port, **options))

    def drain(self, queue, count, deadline_s=60):
        """Takes `count` messages from a queue: a list of (method, properties, body)."""
        taken = []
        connection = self.connect()
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1000)
        for method, properties, body in channel.consume(queue, inactivity_timeout=deadline_s * PATIENCE):
            assert method is not None, f"{len(taken)} of {count} messages in queue {queue} after {deadline_s} s of silence"
            taken.append((method, properties, body))
            if len(taken) % 500 == 0 or len(taken) == count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if len(taken) == count:
                break
        connection.close()
        return taken

    def depth(self, queue):
        connection = self.connect()
        count = connection.channel().queue_declare(queue, passive=True).method.message_count
        connection.close()
        return count


class SecuredRabbit(Rabbit):
    """One that takes AMQP and STOMP, each in the clear and with TLS, and client certificates in place of
    passwords: `tls`, `stomp` and `stomp_tls` are addresses beside its own."""

    def __init__(self, box, authority, name="secured", lines=()):
        ports = [box.port() for _ in range(3)]
        self.tls, self.stomp, self.stomp_tls = (f"127.0.0.1:{port}" for port in ports)
        self.stomp_port = ports[1]
        self.users = set()
        self.authority = authority
        self.cert, self.key = box.path / "rabbit.pem", box.path / "rabbit.key"
        self.install(authority.issue())
        super().__init__(box, name, plugins=["rabbitmq_auth_mechanism_ssl", "rabbitmq_stomp"], lines=[
            f"listeners.ssl.1 = {self.tls}", f"stomp.listeners.tcp.1 = {self.stomp}",
            f"stomp.listeners.ssl.1 = {self.stomp_tls}", f"ssl_options.cacertfile = {authority.cert}",
            f"ssl_options.certfile = {self.cert}", f"ssl_options.keyfile = {self.key}",
            "ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = false",
            "auth_mechanisms.1 = PLAIN", "auth_mechanisms.2 = EXTERNAL", "ssl_cert_login_from = common_name", *lines])

    def start(self):
        super().start()
        # The plugins' listeners come after the broker's own.
        for address in (self.tls, self.stomp, self.stomp_tls):
            port = int(address.rpartition(":")[2])
            wait_for(lambda p=port: listens(p), f"{self.name} to listen on {address}", 60, 0.05)
        return self

    def install(self, identity):
        """Another certificate, from the next connection on."""
        self.cert.write_bytes(identity.cert.read_bytes())
        self.key.write_bytes(identity.key.read_bytes())
        if getattr(self, "process", None):
            self.eval("ssl:clear_pem_cache()")

    def add_user(self, user, password, configure=".*", write=".*", read=".*"):
        self.eval(f'rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"{password}">>, <<"test">>)',
                  f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"/">>, <<"{configure}">>, '
                  f'<<"{write}">>, <<"{read}">>, <<"test">>)')
        self.users.add(user)


def name_of(kind, name):
    return f'rabbit_misc:r(<<"/">>, {kind}, <<"{name}">>)'


def declaration(what, name, *more):
    """Erlang that makes a thing."""
    if what == "queue":
        return f'rabbit_amqqueue:declare({name_of("queue", name)}, true, false, [], none, <<"test">>)'
    if what in ("exchange", "internal"):
        internal = "true" if what == "internal" else "false"
        return (f'rabbit_exchange:declare({name_of("exchange", name)}, {more[0]}, true, false, {internal}, [], '
                f'<<"test">>)')
    if what == "bind":
        return (f'rabbit_binding:add({{binding, {name_of("exchange", name)}, <<"{more[1]}">>, '
                f'{name_of("queue", more[0])}, []}}, <<"test">>)')
    raise ValueError(what)


class QueueArrivals:
    """A drained queue in the shape load.check_all_arrived() takes its sources."""

    def __init__(self, rabbit, queue, count):
        self.name = queue
        self.messages = rabbit.drain(queue, count)

    @property
    def record(self):
        return None

    def body_starts(self):
        return [body[:64].decode("latin-1") for _, _, body in self.messages]
