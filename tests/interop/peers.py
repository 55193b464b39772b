"""How the brokers that fetch.py brings are started. Each is a harness.Broker of the test's own, on a port and in a
folder of its own; `want` skips a test, and says how to get the broker, where it is not there."""

import json
import os
import pathlib
import subprocess

import pytest

import fetch
from harness import Broker, Process, listens, wait_for

HERE = pathlib.Path(__file__).resolve().parent


def want(name):
    """The folder that fetch.py has made for a broker."""
    version, *_ = fetch.RECIPES[name]
    folder = fetch.FOLDER / f"{name}-{version}"
    if not folder.exists():
        message = f"{name} {version} is not in {fetch.FOLDER}: run tests/interop/fetch.py {name}"
        if os.environ.get("TG_INTEROP_REQUIRED") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folder


class Peer(Broker):
    """A broker and its abilities. deny: topics that begin so are refused to every producer."""

    protocol = "mqtt"
    speaks = "MQTT 5"
    denies = True  # has rules that a test can set
    large = 100 * 1024  # a body that it takes

    def __init__(self, box, deny=None, users=None, port=None):
        super().__init__(box, type(self).__name__.lower(), port)
        self.deny, self.users = deny, users
        self.home = want(self.recipe)
        self.folder = box.path / self.name
        self.folder.mkdir()


class Mochi(Peer):
    recipe = "mochi"

    def argv(self):
        options = ["-deny", self.deny] if self.deny else []
        return [self.home / "broker", "-listen", self.address, *options]


class Aedes(Peer):
    recipe = "aedes"
    speaks = "MQTT 3.1.1"

    def argv(self):
        self.environment = {"NODE_PATH": str(self.home / "node_modules")}
        return ["node", HERE / "brokers" / "aedes.js", str(self.port), self.deny or ""]


class Amqtt(Peer):
    recipe = "amqtt"
    speaks = "MQTT 3.1.1"
    denies = False

    def argv(self):
        config = self.folder / "amqtt.json"
        config.write_text(json.dumps({
            "listeners": {"default": {"type": "tcp", "bind": self.address}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}}))
        return [self.home / "venv/bin/amqtt", "-c", config]


class NatsMqtt(Peer):
    recipe = "nats_server"
    speaks = "MQTT 3.1.1"
    denies = False  # it acknowledges a denied message and drops it
    large = 60 * 1024

    def argv(self):
        config = self.folder / "nats.conf"
        config.write_text(f"listen: 127.0.0.1:{self.box.port()}\nserver_name: interop\n"
                          f"jetstream {{ store_dir: {self.folder} }}\nmqtt {{ listen: {self.address} }}\nmax_payload: 100000\n")
        return [self.home / "venv/bin/nats-server", "-c", config]


class Artemis(Peer):
    """STOMP, and MQTT in both versions, on ports of their own. Users: u with the password secret may use every address but
    those that begin with `deny`."""

    recipe = "artemis"

    def __init__(self, box, deny=None, users=None, port=None, protocol="mqtt"):
        self.protocol = protocol
        super().__init__(box, deny, users, port)
        instance = self.folder / "instance"
        made = subprocess.run(
            [self.home / "artemis/bin/artemis", "create", instance, "--nio", "--disable-persistence", "--no-amqp-acceptor",
             "--no-hornetq-acceptor", "--no-mqtt-acceptor", "--no-stomp-acceptor", "--no-web", "--no-autotune", "--silent",
             "--user", "u", "--password", "secret", "--allow-anonymous", "--host", "127.0.0.1",
             "--default-port", str(self.box.port())], capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
        path = instance / "etc/broker.xml"
        text = path.read_text()
        name = {"mqtt": "MQTT", "stomp": "STOMP"}[protocol]
        text = text.replace("</acceptors>", f'<acceptor name="{protocol}">tcp://{self.address}?protocols={name}</acceptor></acceptors>')
        if deny:
            rules = "".join(f'<permission type="{kind}" roles="nobody"/>' for kind in
                            ("createAddress", "createDurableQueue", "createNonDurableQueue", "send"))
            text = text.replace("<security-settings>", f'<security-settings><security-setting match="{deny}.#">{rules}</security-setting>')
        path.write_text(text)
        self.instance = instance

    def argv(self):
        return [self.instance / "bin/artemis", "run"]

    def start(self):
        self.starts += 1
        self.process = Process(self.box, f"{self.name}-{self.starts}", self.argv())
        wait_for(lambda: listens(self.port) or not self.process.alive(), f"{self.name} to listen", 60)
        wait_for(lambda: "Server is now" in self.process.text() or "AMQ221007" in self.process.text(),
                 "Artemis to be live", 60)
        return self
