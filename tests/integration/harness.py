"""The integration tests' tools: processes that end with the test, brokers, daemons, waiting.

Everything a test starts belongs to its Box: a folder, and a list of processes that are ended by
their own pid in reverse order, frozen or not. Nothing waits for time to pass: wait_for() waits for a state and names it
when the deadline passes.

TG_BUILD names the build folder (default: build/ beside the sources).
"""

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("TG_BUILD", ROOT / "build")).resolve()
# A sanitizer makes everything several times slower; deadlines follow.
PATIENCE = float(os.environ.get("TG_PATIENCE", "1"))
SANITIZED = (BUILD / "config.log").exists() and "-fsanitize=" in (BUILD / "config.log").read_text()
FULL = os.environ.get("TG_FULL") == "1"


@functools.cache
def program(name):
    """The path of one of our programs in the build folder."""
    for folder in ("daemon", "tools", "tests/integration"):
        for path in sorted((BUILD / folder).rglob(name)):
            if path.is_file() and os.access(path, os.X_OK) and ".libs" not in path.parts:
                return str(path)
    raise FileNotFoundError(f"{name} is not in {BUILD}: build it first, and set TG_BUILD")


def wait_for(condition, what, deadline_s=10.0, interval_s=0.01):
    """Waits until condition() is true and returns its value."""
    end = time.monotonic() + deadline_s * PATIENCE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s * PATIENCE:.1f} s: {what() if callable(what) else what}")
        time.sleep(interval_s)


def own_network():
    """Moves this process and its later children into a new network namespace: no port is taken there, and dropping
    packets affects no other program. Returns False without permission."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000) != 0:  # CLONE_NEWNET
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


class Network:
    """Faults on the loopback of the session's own network."""

    def __init__(self):
        self.nft("add table ip tidegate; "
                 "add chain ip tidegate input { type filter hook input priority 0; }; "
                 "add set ip tidegate cut { type inet_service; }; "
                 "add rule ip tidegate input tcp dport @cut drop; "
                 "add rule ip tidegate input tcp sport @cut drop")

    @staticmethod
    def nft(rules):
        subprocess.run(["nft", rules], check=True, capture_output=True, text=True)

    def cut(self, port):
        """The peer on this port vanishes: no FIN, no RST, nothing."""
        self.nft(f"add element ip tidegate cut {{ {port} }}")

    def heal(self, port):
        self.nft(f"delete element ip tidegate cut {{ {port} }}")

    def lose(self, port, percent):
        """Drops this share of the packets in both directions."""
        for side in ("dport", "sport"):
            self.nft(f"add rule ip tidegate input tcp {side} {port} numgen random mod 100 < {percent} drop")

    def fini(self):
        self.nft("delete table ip tidegate")


class Process:
    """A program that runs until the test ends; its output goes to a log."""

    def __init__(self, box, name, argv, **options):
        self.name = name
        self.log = box.path / f"{name}.log"
        self.out = open(self.log, "ab")
        self.frozen = False
        self.orderly = False
        self.popen = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL,
                                      stdout=options.pop("stdout", self.out), stderr=self.out, cwd=box.path, **options)
        box.add(self)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def text(self):
        return self.log.read_text(errors="replace")

    def freeze(self):
        self.popen.send_signal(signal.SIGSTOP)
        self.frozen = True
        wait_for(lambda: self.state() == "T", f"{self.name} to be stopped")

    def thaw(self):
        self.popen.send_signal(signal.SIGCONT)
        self.frozen = False

    def state(self):
        return pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def kill(self):
        if self.alive():
            self.popen.kill()
        self.popen.wait()
        self.out.close()

    def stop(self, deadline_s=15):
        """Sends SIGTERM and returns the exit status; a process that does not end is killed and fails the test."""
        if self.alive():
            if self.frozen:
                self.thaw()
            self.popen.terminate()
        return self.wait(deadline_s)

    def wait(self, deadline_s=60):
        try:
            return self.popen.wait(deadline_s * PATIENCE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"{self.name} did not end in {deadline_s * PATIENCE:.0f} s; "
                                 f"its log ends:\n{self.text()[-2000:]}") from None

        # Figures from /proc.

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_kib(self):
        return int(self._status("VmRSS"))

    def cpu_ticks(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def spends(self, seconds):
        """The ticks of CPU it uses and the lines it logs in this time. The measurement needs the time to pass: there is
        no state to wait for. A process that ends early ends it."""
        ticks, lines = self.cpu_ticks(), self.text().count("\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(seconds)
        assert self.alive(), f"{self.name} has ended:\n{self.text()[-2000:]}"
        return self.cpu_ticks() - ticks, self.text().count("\n") - lines

    def _status(self, key):
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return line.split()[1]
        raise KeyError(key)


class Box:
    """One test's folder and processes."""

    def __init__(self, path):
        self.path = path
        self.processes = []
        self.endings = []
        self.ports = set()

    def add(self, process):
        self.processes.append(process)

    def at_end(self, call):
        self.endings.append(call)

    def fini(self):
        for call in self.endings:
            call()
        for process in reversed(self.processes):
            # Leaks are only looked for at an orderly end.
            if SANITIZED and process.orderly and process.alive():
                process.stop(30)
            process.kill()

    def port(self):
        """A free port. In the session's own network no other program will take it."""
        while True:
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            if port not in self.ports:
                self.ports.add(port)
                return port

    def run(self, *argv, deadline_s=60, **options):
        """Runs a program to its end; returns its output and exit status."""
        return subprocess.run([str(word) for word in argv], capture_output=True, text=True, cwd=self.path,
                              timeout=deadline_s * PATIENCE, stdin=options.pop("stdin", subprocess.DEVNULL), **options)

    def logs(self):
        for process in self.processes:
            yield process.name, process.text()


def listens(port, host="127.0.0.1"):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.settimeout(0.5)
        return s.connect_ex((host, port)) == 0


class Broker:
    """The base of Mosquitto and Sink. `address` goes into a pool's broker entry."""

    def __init__(self, box, name, port):
        self.box = box
        self.name = name
        self.port = port or box.port()
        self.address = f"127.0.0.1:{self.port}"
        self.process = None
        self.starts = 0
        self.environment = {}

    def start(self):
        self.starts += 1
        self.process = Process(self.box, f"{self.name}-{self.starts}", self.argv(), env={**os.environ, **self.environment})
        wait_for(lambda: listens(self.port) or not self.process.alive(), f"{self.name} to listen on {self.port}")
        assert self.process.alive(), f"{self.name} does not start:\n{self.process.text()}"
        return self

    def stop(self):
        return self.process.stop()

    def kill(self):
        self.process.kill()

    def freeze(self):
        self.process.freeze()

    def thaw(self):
        self.process.thaw()

    def argv(self):
        raise NotImplementedError


class Mosquitto(Broker):
    """A real mosquitto, as Debian's package has it, with a configuration of the test's own.

    users: name -> password. acl: lines of an ACL file. memory: sessions outlive kill -9, as prepared
    by Mosquitto.prepare()."""

    def __init__(self, box, name="mosquitto", port=None, users=None, acl=None, lines=(), memory=False):
        super().__init__(box, name, port)
        self.folder = box.path / name
        self.folder.mkdir()
        config = [f"listener {self.port} 127.0.0.1", "user root", "log_dest stderr", "log_type error", "log_type warning",
                  "log_type notice", "max_queued_messages 0", "max_inflight_messages 0", "queue_qos0_messages true", *lines]
        if users is None:
            config.append("allow_anonymous true")
        else:
            passwords = self.folder / "passwords"
            passwords.touch(mode=0o600)
            for user, password in users.items():
                subprocess.run(["mosquitto_passwd", "-b", passwords, user, password], check=True, capture_output=True)
            config += ["allow_anonymous false", f"password_file {passwords}"]
        if acl is not None:
            (self.folder / "acl").write_text("\n".join(acl) + "\n")
            config.append(f"acl_file {self.folder / 'acl'}")
        if memory:
            # mosquitto saves only at an orderly end, so the disk keeps the state that prepare() left.
            config += ["persistence true", f"persistence_location {self.folder}/", "autosave_interval 0"]
        self.config = self.folder / "mosquitto.conf"
        self.config.write_text("\n".join(config) + "\n")

    def argv(self):
        return ["mosquitto", "-c", self.config]

    def subscriber(self, filter="#", name=None, qos=1):
        return Subscriber(self.box, self, filter, name or f"sub-{self.name}", qos)

    def prepare(self, filter="#", qos=1):
        """Makes a broker whose subscriber's session is on disk, so that after kill -9 and a restart
        it queues for the subscriber from the first message on. (mosquitto loses messages that it acknowledged and had
        not yet handed on. A subscriber that keeps up prevents that, and so does qos=0: with QoS 1 its acknowledgements
        would wait unread in the dead broker's socket, which the kernel then resets, and the reset discards messages
        that the subscriber has not read.)
        Starts it and returns the subscriber."""
        self.start()
        subscriber = self.subscriber(filter, qos=qos)
        self.stop()
        self.start()
        subscriber.wait_subscribed(2)
        return subscriber


class Sink(Broker):
    """tidegate-sink, told what to do by its options and by tell() while it runs."""

    def __init__(self, box, name="sink", port=None, options=(), record=True, protocol="mqtt"):
        super().__init__(box, name, port)
        self.record = box.path / f"{name}.record" if record else None
        self.control = box.path / f"{name}.control"
        self.options = list(options)
        self.protocol = protocol

    def argv(self):
        argv = [program("tidegate-sink"), "--protocol", self.protocol, "--listen", self.address,
                "--control", f"unix:{self.control}"]
        argv += ["--record", self.record] if self.record else ["--no-record"]
        return argv + self.options

    def tell(self, *words):
        answer = self.box.run(program("tidegate-sink"), "--tell", f"unix:{self.control}", *words)
        assert answer.returncode == 0, f"{self.name}: {' '.join(words)}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def stats(self):
        return json.loads(self.tell("stats"))

    def arrivals(self):
        """Every record line as a dict; only whole lines."""
        fields = ("time_ns", "conn", "seq", "qos", "flags", "topic", "key", "headers", "body")
        if not self.record.exists():
            return []
        data = self.record.read_bytes()
        return [dict(zip(fields, line.decode(errors="surrogateescape").split("\t")))
                for line in data[:data.rfind(b"\n") + 1].splitlines()]


    def body_starts(self):
        """The first bytes of every recorded body, in order of arrival; for records of any size."""
        with open(self.record, "rb") as record:
            for line in record:
                if line.endswith(b"\n"):
                    yield line[:4096].split(b"\t", 8)[8][:64].rstrip(b"\n").decode(errors="replace")


class Subscriber:
    """The C subscriber on a real mosquitto."""

    def __init__(self, box, broker, filter, name, qos=1):
        from load import SubscriberFile
        path = box.path / f"{name}.arrivals"
        self.process = Process(box, name, [program("subscriber"), "127.0.0.1", broker.port, name, filter, path, str(qos)])
        wait_for(path.exists, f"{name} to start")
        self.file = SubscriberFile(path)
        self.name = name
        self.wait_subscribed(1)

    def wait_subscribed(self, times):
        wait_for(lambda: self.file.subscribed() >= times, f"{self.name} to be subscribed {times} times", 20)

    def count(self):
        return self.file.count()

    def arrivals(self):
        return self.file.arrivals()


def secret(path, text):
    """A password file with the permissions that the daemon requires."""
    path.touch(mode=0o600)
    path.write_text(text + "\n")
    return path


def said(result):
    """tidegate-pub's counts that are not zero."""
    line = [line for line in result.stderr.splitlines() if line.startswith("accepted=")][-1]
    counts = dict(word.split("=") for word in line.split())
    return {name: int(counts[name]) for name in ("accepted", "delivered", "sent", "rejected", "expired", "unknown")
            if int(counts[name])}


def libconfig(value, indent=0):
    """A Python value as libconfig text."""
    pad = "  " * (indent + 1)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}L" if abs(value) > 0x7FFFFFFF else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (str, pathlib.Path)):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, dict):
        inside = "".join(f"{pad}{key} = {libconfig(item, indent + 1)};\n" for key, item in value.items())
        return "{\n" + inside + "  " * indent + "}"
    return "( " + ", ".join(libconfig(item, indent) for item in value) + " )"


def libconfig_file(settings):
    return "".join(f"{key} = {libconfig(value)};\n" for key, value in settings.items())


def merged(base, changes):
    """A copy of base with changes laid over it, groups inside groups too."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def pool(brokers, name="events", **changes):
    """A pool's configuration: brokers are Brokers, addresses or whole entries."""
    entries = []
    for broker in brokers:
        if isinstance(broker, Broker):
            broker = broker.address
        entries.append(broker if isinstance(broker, dict) else {"address": broker})
    return merged({"name": name, "protocol": "mqtt", "brokers": entries, "mqtt": {"version": 5, "qos": 1}}, changes)


class Daemon:
    """tidegated with a configuration of the test's own."""

    def __init__(self, box, pools, name="tidegated", **settings):
        self.box = box
        self.name = name
        self.socket = box.path / f"{name}.sock"
        self.admin = box.path / f"{name}.admin"
        self.config = box.path / f"{name}.conf"
        self.config.write_text(libconfig_file(merged(
            {"socket": self.socket, "admin": self.admin, "drain_timeout_ms": 2000 if SANITIZED else 10000, "pools": pools},
            settings)))
        self.process = None
        self.starts = 0
        box.at_end(self.end_successor)

    def end_successor(self):
        """Ends a daemon that took over from ours, by the pid that it tells."""
        if self.process is None or (self.process.alive() and "event=upgraded" not in self.process.text()):
            return
        wait_for(lambda: not self.process.alive(), "the end of the daemon that was replaced", 20)
        told = set()

        def has_ended():
            if not self.answers():
                return True
            status = self.box.run(program("tidegatectl"), "-s", self.admin, "--json", "status")
            if status.returncode == 0 and (pid := json.loads(status.stdout)["status"]["pid"]) not in told:
                told.add(pid)
                os.kill(pid, signal.SIGTERM)
            return False

        wait_for(has_ended, "the last daemon's end", 20)

    def start(self, ready=True, **options):
        self.launch(**options)
        self.process.orderly = True
        wait_for(lambda: not self.process.alive() or self.answers(), f"{self.name} to answer")
        assert self.process.alive(), f"{self.name} does not start:\n{self.process.text()}"
        if ready:
            self.wait_ready()
        return self

    def launch(self, command=None, **options):
        """Starts it and does not wait for anything. command: a program to run in place of the daemon."""
        self.starts += 1
        self.process = Process(self.box, f"{self.name}-{self.starts}",
                               [command or program("tidegated"), "-c", self.config], **options)

    def answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            return s.connect_ex(str(self.admin)) == 0

    def ctl(self, *words):
        """tidegatectl --json: its answer."""
        result = self.box.run(program("tidegatectl"), "-s", self.admin, "--json", *words)
        assert result.returncode == 0, f"tidegatectl {' '.join(words)}: {result.stdout}{result.stderr}"
        return json.loads(result.stdout)

    def rows(self, what):
        """Asks the admin socket: the objects of `brokers`, `links`, `lanes`, `pools` …"""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(10 * PATIENCE)
            s.connect(str(self.admin))
            s.sendall(json.dumps({"cmd": what}).encode() + b"\n")
            with s.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        assert answer["ok"], answer
        return answer[what]

    def links(self, broker=None):
        """The ordinary ones; rows("links") has apart links, too."""
        return [link for link in self.rows("links")
                if not link["apart"] and (broker is None or link["broker"] == broker.address)]

    def link_states(self, broker=None):
        return [link["state"].lower() for link in self.links(broker)]

    def wait_ready(self, broker=None, deadline_s=15):
        wait_for(lambda: (states := self.link_states(broker)) and all(state == "ready" for state in states),
                 lambda: f"every link READY: {self.links(broker)}", deadline_s, 0.03)

    def wait_not_ready(self, broker, deadline_s=15):
        wait_for(lambda: all(state != "ready" for state in self.link_states(broker)),
                 lambda: f"no link to {broker.name} READY: {self.links(broker)}", deadline_s, 0.03)

    def wait_no_lanes(self, deadline_s=20):
        wait_for(lambda: not self.rows("lanes"), lambda: f"no lane left: {self.rows('lanes')[:4]}", deadline_s, 0.03)

    def stop(self, deadline_s=20):
        return self.process.stop(deadline_s)

    def publish(self, *words, pool="events", topic="t", deadline_s=60, **options):
        """tidegate-pub to its end."""
        return self.box.run(program("tidegate-pub"), "-s", self.socket, "-p", pool, "-t", topic, *words,
                            deadline_s=deadline_s, **options)


def need_localhost():
    """For tests of names: localhost must resolve."""
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:
        pytest.skip("this machine has no name for itself: /etc/hosts is without localhost")


def have(*programs):
    return all(shutil.which(name) for name in programs)
