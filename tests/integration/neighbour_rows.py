"""The table of test_neighbours.py, of those that publish badly: messages over which a broker closes, that it denies, that
it never answers or answers oddly. With real brokers where a real one behaves so, else with tidegate-sink."""

import dataclasses
import threading
import typing

import harness_amqp
import neighbours as n
from bad_neighbour import Message, Spec
from harness import FULL, Broker, Mosquitto, Sink, have, merged, pool, secret
from harness_nats import NatsServer, Subscriber
from harness_redis import Redis

LARGEST = 200000   # bytes, of RabbitMQ's messages
RABBIT_RATE = 100  # messages a second: all rows share one RabbitMQ, on one processor


@dataclasses.dataclass
class Row:
    """A kind of bad behaviour. ground(at) starts a broker, `at` being its At; settings go into the pool's configuration."""
    name: str
    protocol: str
    ground: typing.Callable
    bad: list                # Specs, a process each
    topic: str = "load/good"
    settings: dict = dataclasses.field(default_factory=dict)
    ends: set = frozenset({"rejected", "expired", "unknown"})  # how the bad ones' own messages may end
    lost: int = 0            # so many of the neighbour's may end unknown: only with on_failure = "report"
    rate: int = n.RATE
    short: tuple = (1, 2)    # with so many brokers it is in the short form too

    def pool(self, box, brokers):
        login = {"stomp": {"login": "guest", "passcode_file": box.path / "guest", "vhost": "/"}} if isinstance(brokers[0], RabbitPort) \
            and self.protocol == "stomp" else {self.protocol: {}}
        entry = pool(brokers, protocol=self.protocol, **merged(login, self.settings))
        if self.protocol != "mqtt":
            del entry["mqtt"]
        return entry


class RabbitPort(Broker):
    """One of the listeners of a RabbitMQ that is there already."""

    def __init__(self, box, port):
        super().__init__(box, f"rabbit-{port}", port)


class Rabbits:
    """The RabbitMQ of all rows, with two listeners for each protocol; it takes seconds to start, when the first row
    wants it."""

    def __init__(self):
        self.box = self.rabbit = None
        self.lock = threading.Lock()

    def port(self, protocol, number):
        with self.lock:
            self.start()
        return self.ports[protocol][number]

    def start(self):
        if self.rabbit is None:
            self.box = n.OpenBox()
            self.ports = {name: [self.box.port(), self.box.port()] for name in ("amqp", "stomp")}
            listeners = [f"listeners.tcp.{at} = 127.0.0.1:{port}" for at, port in enumerate(self.ports["amqp"], 2)]
            listeners += [f"stomp.listeners.tcp.{at} = 127.0.0.1:{port}" for at, port in enumerate(self.ports["stomp"], 1)]
            self.rabbit = harness_amqp.Rabbit(self.box, plugins=["rabbitmq_stomp"],
                                              lines=[*listeners, f"max_message_size = {LARGEST}"])
            self.rabbit.start()
            n.wait_listening(sum(self.ports.values(), []))
            self.rabbit.declare(("queue", "good"), ("queue", "bad"))

    def fini(self):
        if self.box:
            self.box.fini()


@dataclasses.dataclass
class At:
    """Where a broker is started: the row's box, and its number among the row's brokers."""
    box: n.OpenBox
    number: int
    rabbits: Rabbits


def publishes(*messages, **more):
    return [Spec(messages=[dataclasses.asdict(m) for m in messages], **{"rate": 2 if FULL else 5, **more})]


def mosquitto(*lines, acl=None):
    def start(at):
        n.need(have("mosquitto"), "mosquitto")
        return Mosquitto(at.box, f"mosquitto{at.number}", lines=lines, acl=acl).start()
    return start


def nats(lines=(), maker=(None, None)):
    def start(at):
        n.need(have("nats-server"), "nats-server")
        server = NatsServer(at.box, f"nats{at.number}", lines=lines, maker=maker).start()
        return server.stream("S", ["t", "t.>"], storage="memory", max_msgs=10000)
    return start


def nats_heard():
    """A server where a service listens to "heard.>" and answers nothing; no stream stores that."""
    def start(at):
        server = nats()(at)
        at.listeners = [*getattr(at, "listeners", []), Subscriber(server, "heard.>")]
        return server
    return start


def rabbit(protocol):
    def start(at):
        n.need(harness_amqp.available(), "rabbitmq-server")
        secret(at.box.path / "guest", "guest")
        return RabbitPort(at.box, at.rabbits.port(protocol, at.number))
    return start


def redis(*lines):
    def start(at):
        n.need(have("redis-server"), "redis-server")
        server = Redis(at.box, f"redis{at.number}", lines=lines).start()
        server.must("SET", "wrong", "no stream")
        return server
    return start


def sink(protocol, *options):
    return lambda at: Sink(at.box, f"sink{at.number}", protocol=protocol, options=options).start()


# ---- messages over which a broker closes, refused and denied ones (kind 1) ----

SLASHES, SYS, LARGE = Message("/" * 300), Message("$SYS/x"), Message("big", size=5000)
MQTT = {4: {"mqtt": {"version": 4, "qos": 1}}, 5: {"mqtt": {"version": 5, "qos": 1}}}
ACL = ("topic readwrite load/#", "topic read $SYS/#")
# In 3.1.1 mosquitto acknowledges a message that the rules deny.
DENIED = {4: {"delivered", "rejected", "expired", "unknown"}, 5: {"rejected", "expired", "unknown"}}


def mqtt_rows():
    for version, settings in MQTT.items():
        def row(name, ground, *messages, version=version, settings=settings, **more):
            return Row(f"mqtt{version}-{name}", "mqtt", ground, publishes(*messages), settings=settings, **more)
        yield row("slashes", mosquitto(), SLASHES)
        yield row("sys", mosquitto(), SYS, ends=DENIED[version])
        yield row("denied", mosquitto(acl=ACL), Message("no/such"), ends=DENIED[version])
        yield row("packet-limit", mosquitto("max_packet_size 2000"), LARGE)
        yield row("size-limit", mosquitto("message_size_limit 2000"), LARGE, ends=DENIED[version])


NATS = {"nats": {"jetstream": True, "learn_endpoints": False}}
USERS = ('authorization { users = [ {user: maker, password: maker}, {user: gate, password: tide, '
         'permissions: { publish: { deny: ["no.>"] } } } ] }',)


def nats_rows():
    def row(name, ground, *messages):
        return Row(f"nats-{name}", "nats", ground, publishes(*messages), "t.good", NATS, short=(2,))
    yield row("subjects", nats(), Message("a..b"), Message("a b"), Message(">"), Message("$JS.API.x"), Message("t.*"))
    yield row("payload", nats(("max_payload: 4096",)), Message("t.bad", size=5000))


def nats_denied():
    def start(at):
        secret(at.box.path / "tide", "tide")
        return nats(USERS, ("maker", "maker"))(at)
    return Row("nats-denied", "nats", start, publishes(Message("no.way")), "t.good",
               {"nats": {**NATS["nats"], "username": "gate", "password_file": "tide"}}, short=(1,))


def rabbit_rows():
    def amqp(name, *messages, **more):
        return Row(f"amqp-{name}", "amqp", rabbit("amqp"), publishes(*messages, ring_bytes=1 << 20), "good",
                   rate=RABBIT_RATE, short=(1,), **more)
    yield amqp("no-exchange", Message("missing/key"))
    yield amqp("reply-to", Message("amq.rabbitmq.reply-to"), Message("amq.rabbitmq.reply-to.forged.key"))
    yield amqp("internal", Message("amq.rabbitmq.trace/key"), Message("amq.gen-none"))
    yield amqp("too-large", Message("bad", size=LARGEST + 1))
    yield amqp("user-id", Message("bad", headers={"user-id": "somebody"}), Message("bad", headers={"user_id": "somebody"}),
               ends={"delivered"})  # headers of the application's, which mean nothing to RabbitMQ

    def stomp(name, *messages, **more):
        return Row(f"stomp-{name}", "stomp", rabbit("stomp"), publishes(*messages), "/queue/good", rate=RABBIT_RATE,
                   short=(2,), **more)
    yield stomp("destination", Message("/queue/a/b"))
    yield stomp("nowhere", Message("/nowhere/x"), Message("/exchange/missing/key"), Message("/topic"))
    yield stomp("user-id", Message("/queue/bad", headers={"user-id": "somebody"}))
    yield stomp("odd-headers", Message("/queue/bad", headers={"expiration": "never"}),
                Message("/queue/bad", headers={"priority": "high"}), Message("/queue/bad", headers={"reply-to": "/temp-queue/x"}),
                ends={"delivered", "rejected", "expired", "unknown"})


def redis_rows():
    def row(name, ground, *messages, **more):
        return Row(f"redis-{name}", "redis", ground, publishes(*messages, ring_bytes=16 << 20), "good", short=(1,), **more)
    yield row("wrong-type", redis(), Message("wrong"))
    yield row("bulk-limit", redis("proto-max-bulk-len 1mb"), Message("bad", size=2000000))
    yield row("buffer-limit", redis("client-query-buffer-limit 1mb"), Message("bad", size=2000000))
    yield row("denied", redis("user default on nopass ~good ~wrong +@all"), Message("bad"))


# ---- the same of tidegate-sink, in every protocol, and what does not wash a lane clean ----

TOPICS = {"mqtt": ("load/good", "bad"), "nats": ("t.good", "bad"), "amqp": ("good", "bad"), "redis": ("good", "bad"),
          "stomp": ("/queue/good", "/queue/bad")}
FAULTS = "*bad*={}"
# The sink's words at a close are of a message here. Its NATS and AMQP are those of a server that shuts down.
SAYS_WHY = ("mqtt", "redis", "stomp")


def closing(how, protocol="mqtt"):
    return sink(protocol, "--faults", FAULTS.format(how))


def sink_rows():
    for protocol, (good, bad) in TOPICS.items():
        versions = MQTT if protocol == "mqtt" else {"": {}}
        for version, settings in versions.items():
            for how in ("close", "reset", "reject") + (("error", "trail", "both") if protocol in SAYS_WHY else ()):
                code = ":406" if (protocol, how) == ("amqp", "reject") else ""  # 403 means the exchange, for all messages
                yield Row(f"sink-{protocol}{version}-{how}", protocol, closing(how + code, protocol), publishes(Message(bad)),
                          good, merged(NATS if protocol == "nats" else {}, settings),
                          short={"close": (1,), "error": (2,), "trail": (1,)}.get(how, ()))


def closed(name, ground=closing("close"), settings=MQTT[4], **more):
    """Over MQTT 3.1.1, whose brokers have no word for it."""
    bad = {key: more.pop(key) for key in ("rate", "burst", "good", "good_topic", "fresh", "most") if key in more}
    return Row(f"closes-{name}", "mqtt", ground, publishes(Message("bad"), **bad) * more.pop("processes", 1),
               settings=settings, **{"short": (2,), **more})


def washing_rows():
    yield closed("new-lane", fresh="lane")
    yield closed("new-process", fresh="process")
    yield closed("several", processes=4)
    yield closed("among-good", good=10, good_topic="load/own", short=(1, 2))
    yield closed("among-good-words", closing("error:130"), MQTT[5], good=10, good_topic="load/own")
    yield closed("many", rate=200)
    for order in ("key", "none"):
        yield closed(f"order-{order}", settings=merged(MQTT[4], {"order": order}))
    yield closed("links", settings=merged(MQTT[4], {"links": 4}))
    # The neighbour's messages in flight on a link that is closed are reported, of the first closes and no more.
    yield closed("report", settings=merged(MQTT[4], {"on_failure": "report"}), lost=20)


# ---- never answered, answered late or oddly (kind 2) ----

def unanswered_rows():
    """A subject that is listened to and stored by no stream; and the sink, which answers nothing at all. Redis is left
    out: its answers have no numbers, so one that never comes holds up its connection, and no server withholds one."""
    patience = n.BESIDE_S * 1000 + 3000
    for name, count in (("one", 1), ("many", 400)):
        for pace, rate in (("", n.RATE), ("-full-speed", 0)):
            short = {("many", n.RATE): (2,), ("many", 0): (1,)}.get((name, rate), ())
            yield Row(f"nats-unanswered-{name}{pace}", "nats", nats_heard(),
                      publishes(Message("heard.x", size=0), rate=count, most=count, timeout_ms=patience),
                      "t.good", NATS, rate=rate, short=short)
            for protocol, (good, bad) in TOPICS.items():
                if protocol == "redis":
                    continue
                yield Row(f"sink-{protocol}-silent-{name}{pace}", protocol, closing("silent", protocol),
                          publishes(Message(bad), rate=count, most=count, timeout_ms=patience), good,
                          NATS if protocol == "nats" else {}, rate=rate,
                          short=() if rate == 0 and protocol != "mqtt" else short)


ROWS = [*mqtt_rows(), *nats_rows(), nats_denied(), *rabbit_rows(), *redis_rows(), *sink_rows(), *washing_rows(),
        *unanswered_rows()]
