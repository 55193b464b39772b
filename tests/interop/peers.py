"""How the brokers that fetch.py brings are started. Each is a harness.Broker of the test's own, on a port and in a
folder of its own; `want` skips a test, and says how to get the broker, where it is not there."""

import json
import os
import pathlib
import subprocess

import pytest

import fetch
import harness_amqp
import harness_nats
import harness_redis
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
    login = None  # user and password, where it wants some
    patience_s = 10  # to start

    def __init__(self, box, deny=None, users=None, port=None):
        super().__init__(box, type(self).__name__.lower(), port)
        self.deny, self.users = deny, users
        self.home = want(self.recipe)
        self.folder = box.path / self.name
        self.folder.mkdir()

    def start(self):
        self.starts += 1
        argv = self.argv()  # it may set the environment
        self.process = self.launch(argv, env={**os.environ, **self.environment})
        wait_for(lambda: self.listening() or not self.process.alive(), f"{self.name} to listen on {self.port}", self.patience_s)
        assert self.process.alive(), f"{self.name} does not start:\n{self.process.text()}"
        return self

    def launch(self, argv, **options):
        return Process(self.box, f"{self.name}-{self.starts}", argv, **options)

    def listening(self):
        return listens(self.port)


class Java(Peer):
    """One of ours around a broker that is a library; fetch.py has compiled it."""

    patience_s = 60

    def java(self, program, *words, options=()):
        return ["java", "-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *options, "-cp",
                f"{self.home}/classes:{self.home}/lib/*", program, *words]


class HiveMq(Java):
    recipe = "hivemq"
    closes = False  # over a denied message, instead of answering it

    def argv(self):
        conf = self.folder / "conf"
        if not conf.exists():
            for name in ("conf", "data", "extensions"):
                (self.folder / name).mkdir()
            (conf / "config.xml").write_text(
                f"<hivemq><listeners><tcp-listener><port>{self.port}</port><bind-address>127.0.0.1</bind-address></tcp-listener>"
                "</listeners><anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>")
        opens = [word for name in ("java.lang", "java.nio", "sun.nio.ch", "jdk.internal.misc")
                 for word in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")]
        rules = [self.deny or "", *(["close"] if self.closes else [])]
        return self.java("HiveMq", self.folder, *rules, options=opens)


class ClosingHiveMq(HiveMq):
    """It ends the connection over a denied message with a DISCONNECT 0x87, which looks like bad credentials."""

    closes = True


class Moquette(Java):
    recipe = "moquette"
    speaks = "MQTT 3.1.1"
    denies = False  # it never acknowledges a denied message of QoS 1
    large = 7000
    limit = 8092  # its default

    def argv(self):
        return self.java("Moquette", str(self.port), self.deny or "")


class ActiveMq6(Java):
    """MQTT, or STOMP."""

    recipe = "activemq6"
    speaks = "MQTT 3.1.1"
    denies = False

    def __init__(self, box, deny=None, users=None, port=None, protocol="mqtt"):
        self.protocol = protocol
        super().__init__(box, deny, users, port)

    def argv(self):
        return self.java("ActiveMq6", self.folder, f"{self.protocol}://{self.address}")


class Qpid(Java):
    """AMQP 0-9-1; anybody may do anything as guest."""

    protocol = "amqp"
    recipe = "qpid"

    def argv(self):
        config = self.folder / "qpid.json"
        config.write_text(json.dumps({
            "name": "interop", "modelVersion": "9.0",
            "authenticationproviders": [{"name": "plain", "type": "Plain", "secureOnlyMechanisms": [],
                                         "users": [{"name": "guest", "type": "managed", "password": "guest"}]}],
            "ports": [{"name": "amqp", "port": str(self.port), "bindingAddress": "127.0.0.1", "authenticationProvider": "plain",
                       "protocols": ["AMQP_0_9_1"], "virtualhostaliases": [{"name": "default", "type": "defaultAlias"},
                                                                           {"name": "name", "type": "nameAlias"}]}],
            "virtualhostnodes": [{"name": "default", "type": "Memory", "defaultVirtualHostNode": "true",
                                  "virtualHostInitialConfiguration": json.dumps({"type": "Memory"})}]}))
        return self.java("Qpid", config, self.folder)


class Rumqttd(Peer):
    """A server for each version; this is that of MQTT 5."""

    recipe = "rumqttd"
    denies = False
    section = "v5"
    limit = 200000

    def argv(self):
        config = self.folder / "rumqttd.toml"
        config.write_text(f"""id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[{self.section}.1]
name = "interop"
listen = "{self.address}"
next_connection_delay_ms = 1
[{self.section}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {self.limit}
max_inflight_count = 100
dynamic_filters = true
""")
        return [self.home / "bin/rumqttd", "-c", config]


class Rumqttd3(Rumqttd):
    speaks = "MQTT 3.1.1"
    section = "v4"


class Ejabberd(Peer):
    """Debian's, from the folder that its packages were unpacked in."""

    recipe = "ejabberd"
    patience_s = 60
    login = "u@localhost", "anything"
    denies = False

    def argv(self):
        config = self.folder / "ejabberd.yml"
        config.write_text(f"""hosts: [localhost]
loglevel: info
listen:
  - port: {self.port}
    ip: "127.0.0.1"
    module: mod_mqtt
    backlog: 100
auth_method: [anonymous]
allow_multiple_connections: true
anonymous_protocol: both
modules:
  mod_mqtt: {{}}
""")
        libraries = sorted({str(path.parent) for path in (self.home / "root").rglob("*.app")})
        self.environment = {"HOME": str(self.folder), "EJABBERD_CONFIG_PATH": str(config),
                            "EJABBERD_LOG_PATH": str(self.folder / "ejabberd.log")}
        return ["erl", "-noinput", "-boot", "start_sasl", "+S", "1:1", "-pa", *libraries, "-mnesia", "dir", f'"{self.folder}/mnesia"',
                "-s", "ejabberd"]


class RabbitMqtt(harness_amqp.Rabbit):
    """Debian's RabbitMQ with its MQTT plugin."""

    speaks = "MQTT 3.1.1"
    large = 100 * 1024
    login = None

    def __init__(self, box, deny=None):
        if not harness_amqp.available():
            pytest.skip("rabbitmq-server is not installed")
        self.mqtt_port = box.port()
        self.deny = deny
        super().__init__(box, plugins=["rabbitmq_mqtt"], lines=[
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt_port}", "mqtt.allow_anonymous = true"])
        self.port, self.amqp_port = self.mqtt_port, self.port
        self.address = f"127.0.0.1:{self.port}"

    def start(self):
        super().start()
        if self.deny:
            self.ctl("set_topic_permissions", "guest", "amq.topic", f"^(?!{self.deny}).*", ".*")
        return self

    def stop(self):
        self.process.kill()


class Valkey(harness_redis.Redis):
    def __init__(self, box):
        self.home = want("valkey")
        super().__init__(box, "valkey", durable=True)

    def argv(self):
        server = next(path for path in self.home.rglob("*") if path.name == "valkey-server" and os.access(path, os.X_OK))
        return [server, self.config]


class NewestNats(harness_nats.NatsServer):
    def __init__(self, box, **more):
        self.home = want("nats_server")
        super().__init__(box, "newest", **more)

    def argv(self):
        return [self.home / "venv/bin/nats-server", "-c", self.config]


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
    limit = 100000

    def argv(self):
        config = self.folder / "nats.conf"
        config.write_text(f"listen: 127.0.0.1:{self.box.port()}\nserver_name: interop\n"
                          f"jetstream {{ store_dir: {self.folder} }}\nmqtt {{ listen: {self.address} }}\nmax_payload: {self.limit}\n")
        return [self.home / "venv/bin/nats-server", "-c", config]


class Artemis(Peer):
    """STOMP, and MQTT in both versions, on ports of their own. Users: u with the password secret may use every address but
    those that begin with `deny`."""

    recipe = "artemis"
    patience_s = 60

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

    def launch(self, argv, **options):
        return harness_amqp.Tree(self.box, f"{self.name}-{self.starts}", argv, **options)

    def listening(self):
        return listens(self.port) and "AMQ221007" in self.process.text()  # "Server is now active"
