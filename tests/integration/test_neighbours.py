"""No producer can hurt another: one table of bad behaviours, each beside one honest neighbour in the same pool.

The bad one is a process of its own, of another user (65534 where the tests run as root). The honest one publishes 500
messages a second all the time. Every row is run with one broker and with two, which are the real ones where a real
one behaves so, and tidegate-sink where it takes a broker that does as it is told. What each is left with:

  the neighbour   its rate, and delay; every message delivered: nothing rejected, unknown or expired
  the bad one     exactly one completion a message, and words with each that was not delivered

The short form counts; what it measures is printed and held to bounds that a busy machine keeps. With TG_FULL=1 a row
takes a minute, is held to what is promised, and its figures go into the file that TG_NEIGHBOURS names
(daemon/doc/neighbours.md's tables). One row: `pytest tests/integration/test_neighbours.py -k mqtt5-slashes-1`.
"""

import dataclasses
import os
import typing

import pytest

import neighbours as n
from harness import FULL, Mosquitto, Sink, have, pool
from harness_nats import NatsServer
from neighbours import BadProcess, Message, Neighbour, Spec


@pytest.fixture
def box():
    box = n.OpenBox()
    yield box
    box.fini()


@dataclasses.dataclass
class Row:
    """A kind of bad behaviour. ground(box, number) starts a broker; settings go into the pool's configuration."""
    name: str
    protocol: str
    ground: typing.Callable
    bad: Spec
    needs: str = ""
    topic: str = "load/good"
    settings: dict = dataclasses.field(default_factory=dict)
    ends: set = frozenset({"rejected", "expired", "unknown"})  # how the bad one's own messages may end
    lost: int = 0            # the neighbour's messages that may end unknown: with on_failure = "report"
    rate: int = n.RATE

    def pool(self, brokers):
        entry = pool(brokers, protocol=self.protocol, **{self.protocol: {}, **self.settings})
        if self.protocol != "mqtt":
            del entry["mqtt"]
        return entry


def publishes(*messages, **more):
    return Spec(messages=[dataclasses.asdict(m) for m in messages], **{"rate": 2 if FULL else 5, **more})


# ---- a broker closes over a message ----

def mosquitto(*lines, acl=None):
    return lambda box, number: Mosquitto(box, f"mosquitto{number}", lines=lines, acl=acl).start()


def sink(protocol, *options):
    return lambda box, number: Sink(box, f"sink{number}", protocol=protocol, options=options).start()


def nats(stream=True, lines=()):
    def start(box, number):
        server = NatsServer(box, f"nats{number}", lines=lines).start()
        return server.stream("S", ["t", "t.>"], storage="memory", max_msgs=10000) if stream else server
    return start


SLASHES, SYS, LARGE = Message("/" * 300), Message("$SYS/x"), Message("big", size=5000)
MQTT4, MQTT5 = {"mqtt": {"version": 4, "qos": 1}}, {"mqtt": {"version": 5, "qos": 1}}
NATS = {"nats": {"jetstream": True, "learn_endpoints": False}}
ACL = ("topic readwrite load/#", "topic read $SYS/#")


def mqtt_rows():
    for version, settings in ((4, MQTT4), (5, MQTT5)):
        def row(name, ground, *messages, version=version, settings=settings, **more):
            return Row(f"mqtt{version}-{name}", "mqtt", ground, publishes(*messages, **more), "mosquitto", settings=settings)
        yield row("slashes", mosquitto(), SLASHES)
        yield row("sys", mosquitto(), SYS)
        yield row("denied", mosquitto(acl=ACL), Message("no/such"))
        yield row("packet-limit", mosquitto("max_packet_size 2000"), LARGE)
        yield row("size-limit", mosquitto("message_size_limit 2000"), LARGE)


def nats_rows():
    """A subject that is listened to, whose answer is none of JetStream's acknowledgements: never answered, as it were."""
    for name, count in (("one", 1), ("many", 400)):
        for pace, rate in (("steady", n.RATE), ("full-speed", 0)):
            yield Row(f"nats-unanswered-{name}-{pace}", "nats", nats(),
                      publishes(Message("$JS.API.INFO", size=0), rate=count, most=count, timeout_ms=n.BESIDE_S * 1000 + 3000),
                      "nats-server", "t.good", NATS, rate=rate)


ROWS = [
    *mqtt_rows(),
    *nats_rows(),
]


def run(box, row, brokers, capsys):
    if row.needs and not have(row.needs):
        pytest.skip(f"needs {row.needs}")
    grounds = [row.ground(box, number) for number in range(brokers)]
    d = n.Daemon(box, [row.pool(grounds)]).start()
    neighbour = Neighbour(box, d, row.topic, rate=row.rate)
    alone, beside, bad = neighbour.run(lambda: BadProcess(box, d, row.bad))
    figures = neighbour.finish(alone, beside)
    bad.finish()
    line = n.line_of(row.name, row.protocol, brokers, figures, bad.outcomes())
    with capsys.disabled():
        print("\n" + line)
        for words, count in bad.words().most_common(4):
            print(f"    {count} x {words}")
    if FULL and os.environ.get("TG_NEIGHBOURS"):
        with open(os.environ["TG_NEIGHBOURS"], "a", encoding="utf-8") as file:
            file.write(line + "\n")
    check(row, figures, bad)
    d.wait_no_lanes(30)
    assert d.stop() == 0


def check(row, f, bad):
    unknown = f.outcomes.pop("unknown", 0)
    assert unknown <= row.lost and set(f.outcomes) == {"delivered"}, f"the neighbour's: {unknown} unknown, {f.outcomes}"
    promised = n.SHARE * row.rate if row.rate else n.SHARE_AT_FULL_SPEED * f.alone
    assert f.beside >= promised, f"the neighbour had {f.beside:.0f} a second, {f.alone:.0f} alone"
    assert not row.rate or f.p99 < n.P99_MS, f"the neighbour's p99 was {f.p99:.1f} ms"
    ends = bad.outcomes()
    assert ends and set(ends) <= row.ends | {"refused"}, f"the bad one's: {ends}"
    assert not bad.wordless(), f"without a word: {bad.wordless()[:3]}"
    good = bad.outcomes("good")
    assert not good or set(good) == {"delivered"}, f"the bad one's own good messages: {good}"


@pytest.mark.long
@pytest.mark.parametrize("brokers", (1, 2))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_neighbour(box, row, brokers, capsys):
    run(box, row, brokers, capsys)
