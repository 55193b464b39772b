"""Brokers are named by names, and a name server that does not answer holds up only the brokers it is asked for."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time

import pytest

from harness import Daemon, Mosquitto, have, pool, program, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not have("unshare"),
                                reason="needs root, for a resolv.conf and a hosts file of its own")

A, AAAA = 1, 28


class NameServer:
    """Answers what it was told to, drops the rest. addresses: (name, type) -> address."""

    def __init__(self, host, addresses=None, delay_s=0.0):
        self.addresses = addresses or {}
        self.delay_s = delay_s
        self.asked = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 53))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            query, client = self.socket.recvfrom(4096)
            if not query:
                return
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode())
                at += 1 + query[at]
            kind = struct.unpack(">H", query[at + 1:at + 3])[0]
            name = ".".join(labels)
            self.asked.append((name, kind))
            if (name, kind) not in self.addresses:
                continue
            address = self.addresses[name, kind]
            data = socket.inet_pton(socket.AF_INET6 if kind == AAAA else socket.AF_INET, address) if address else b""
            answer = struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data if address else b""
            header = query[:2] + struct.pack(">HHHHH", 0x8180, 1, 1 if address else 0, 0, 0)
            reply = header + query[12:at + 5] + answer
            if self.delay_s:
                threading.Timer(self.delay_s, self.reply, (reply, client)).start()
            else:
                self.reply(reply, client)

    def reply(self, reply, client):
        with contextlib.suppress(OSError):  # a late one, when the test is over
            self.socket.sendto(reply, client)

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.socket.getsockname())
        self.thread.join()
        self.socket.close()


class Resolving:
    """A daemon's own /etc/resolv.conf, /etc/hosts and nsswitch.conf; the files can be written while it runs."""

    def __init__(self, box, servers, hosts="127.0.0.1 localhost\n", nsswitch="hosts: files dns\n"):
        self.resolv, self.hosts, self.nsswitch = box.path / "resolv.conf", box.path / "hosts", box.path / "nsswitch.conf"
        self.use(servers)
        self.hosts.write_text(hosts)
        self.nsswitch.write_text(nsswitch)
        # A script in the place of the program, so that the daemon is the process that is started.
        self.script = box.path / "tidegated-with-names"
        self.script.write_text(
            "#!/bin/sh\n"
            'if [ "$IN_NAMES" != 1 ]; then IN_NAMES=1 exec unshare -m "$0" "$@"; fi\n'
            f"mount --bind {self.resolv} /etc/resolv.conf && mount --bind {self.hosts} /etc/hosts &&\n"
            f'mount --bind {self.nsswitch} /etc/nsswitch.conf && exec {program("tidegated")} "$@"\n')
        self.script.chmod(0o755)

    def use(self, servers):
        self.resolv.write_text("".join(f"nameserver {server}\n" for server in servers))


@pytest.fixture
def name_server():
    servers = []

    def start(*args, **options):
        servers.append(NameServer(*args, **options))
        return servers[-1]
    yield start
    for server in servers:
        server.close()


@pytest.fixture
def resolving(box):
    """resolving(names, pool, …): a daemon that looks names up as `names` says."""
    def start(names, *pools):
        return Daemon(box, list(pools)).start(ready=False, command=names.script)
    return start


def link_of(d, name):
    return [link for link in d.rows("links") if link["pool"] == name][0]


@pytest.mark.sanitizers
def test_dead_name_server_delays_only_its_own_brokers(box, resolving, name_server):
    """Eight brokers whose name server is silent, and one in /etc/hosts that restarts."""
    dead = name_server("127.0.0.53")
    broker = Mosquitto(box, port=box.port()).start()
    names = Resolving(box, ["127.0.0.53"], hosts="127.0.0.1 localhost good.test\n")
    d = resolving(names, pool([f"good.test:{broker.port}"], name="good"),
                  pool([f"bad{i}.test:1" for i in range(8)], name="bad"))
    wait_for(lambda: link_of(d, "good")["state"].lower() == "ready", "the good broker's link", 15)
    wait_for(lambda: len({name for name, _ in dead.asked}) >= 8, "every bad name to be asked for")
    broker.kill()
    wait_for(lambda: link_of(d, "good")["state"].lower() != "ready", "the link to be left")
    start = time.monotonic()
    broker.start()
    result = d.publish("-m", "x", "--timeout", "20s", pool="good")
    assert "delivered=1" in result.stderr, result.stderr
    assert time.monotonic() - start < 10
    wait_for(lambda: "no answer of the name servers in 2000 ms" in link_of(d, "bad")["why"],
             lambda: link_of(d, "bad"), 15)


@pytest.mark.sanitizers
def test_end_does_not_wait_for_a_name_server(resolving, box, name_server):
    dead = name_server("127.0.0.53")
    d = resolving(Resolving(box, ["127.0.0.53"]), pool([f"bad{i}.test:1" for i in range(8)]))
    wait_for(lambda: dead.asked, "a look-up to be under way")
    start = time.monotonic()
    d.process.popen.send_signal(signal.SIGTERM)
    assert d.process.wait(10) == 0
    assert "event=stopped" in d.process.text()
    assert time.monotonic() - start < 5


def test_second_name_server_is_asked_in_time(box, mosquitto, resolving, name_server):
    """The first is dead: connect_timeout_ms leaves room for the second."""
    name_server("127.0.0.53")
    name_server("127.0.0.54", {("broker.test", A): "127.0.0.1", ("broker.test", AAAA): ""})
    d = resolving(Resolving(box, ["127.0.0.53", "127.0.0.54"]), pool([f"broker.test:{mosquitto.port}"]))
    d.wait_ready()
    assert "no answer of the name servers" not in d.process.text()


def test_late_answer_counts(box, mosquitto, resolving, name_server):
    """Slower than the time after which it is asked again."""
    name_server("127.0.0.53", {("broker.test", A): "127.0.0.1", ("broker.test", AAAA): ""}, delay_s=0.8)
    d = resolving(Resolving(box, ["127.0.0.53"]), pool([f"broker.test:{mosquitto.port}"]))
    d.wait_ready()


@pytest.mark.sanitizers
def test_questions_for_ipv6_that_are_dropped_do_not_hide_ipv4(box, mosquitto, resolving, name_server):
    name_server("127.0.0.53", {("broker.test", A): "127.0.0.1"})
    d = resolving(Resolving(box, ["127.0.0.53"]), pool([f"broker.test:{mosquitto.port}"]))
    d.wait_ready()
    assert "no answer of the name servers" not in d.process.text()


def test_ipv6_without_a_route_is_left_out(box, mosquitto, resolving, name_server):
    """2001:db8:: leads nowhere from here: the link does not lose an attempt on it."""
    name_server("127.0.0.53", {("broker.test", A): "127.0.0.1", ("broker.test", AAAA): "2001:db8::1"})
    d = resolving(Resolving(box, ["127.0.0.53"]), pool([f"broker.test:{mosquitto.port}"]))
    d.wait_ready()
    assert "level=warn event=link_state" not in d.process.text(), d.process.text()


@pytest.mark.sanitizers
def test_changed_name_server_and_hosts_are_noticed(box, mosquitto, resolving, name_server):
    name_server("127.0.0.53")
    name_server("127.0.0.54", {("broker.test", A): "127.0.0.1", ("broker.test", AAAA): ""})
    names = Resolving(box, ["127.0.0.53"])
    d = resolving(names, pool([f"broker.test:{mosquitto.port}"], name="dns"), pool([f"host.test:{mosquitto.port}"], name="file"))
    wait_for(lambda: "name look-up" in link_of(d, "dns")["why"], lambda: link_of(d, "dns"), 15)
    names.use(["127.0.0.54"])
    wait_for(lambda: link_of(d, "dns")["state"].lower() == "ready", lambda: link_of(d, "dns"), 20)
    names.hosts.write_text("127.0.0.1 localhost host.test\n")
    wait_for(lambda: link_of(d, "file")["state"].lower() == "ready", lambda: link_of(d, "file"), 20)


def test_hosts_line_of_nsswitch_is_honoured(box, mosquitto, resolving, name_server):
    """Without "dns" in it no name server is asked."""
    server = name_server("127.0.0.53", {("broker.test", A): "127.0.0.1", ("broker.test", AAAA): ""})
    names = Resolving(box, ["127.0.0.53"], nsswitch="hosts: files\n")
    d = resolving(names, pool([f"broker.test:{mosquitto.port}"]))
    wait_for(lambda: "name look-up: " in link_of(d, "events")["why"], lambda: link_of(d, "events"), 15)
    assert not server.asked
    names.hosts.write_text("127.0.0.1 localhost broker.test\n")
    d.wait_ready(deadline_s=20)


def test_name_server_that_is_not_there_is_said(box, resolving, name_server):
    d = resolving(Resolving(box, ["127.0.0.99"]), pool(["broker.test:1"]))
    wait_for(lambda: "DNS servers" in link_of(d, "events")["why"],
             lambda: link_of(d, "events"), 15)
