"""Brokers of AMQP, NATS and Redis from the package registries."""

import pytest

import battery
import harness_nats
from harness import pool
from load import Producer
from peers import NewestNats, Qpid, Valkey
from tls import Authority


def entry(broker, protocol, **more):
    made = pool([broker], protocol=protocol, links=2, **more)
    del made["mqtt"]
    return made


# --- Qpid: AMQP 0-9-1 ---


def routing_key(text):
    return "amq.topic/" + text.replace("/", ".")


@pytest.fixture
def qpid(box, daemon):
    broker = Qpid(box).start()
    d = daemon(entry(broker, "amqp"), ready=False)
    d.wait_ready(deadline_s=30)
    return broker, d


def test_every_message_arrives_once_at_qpid(qpid, tmp_path):
    broker, d = qpid
    consumer = battery.Queue(broker.port)
    battery.run(d, broker, consumer.received, tmp_path, topic=routing_key)


def test_qpid_is_left_when_it_freezes_and_found_when_it_is_back(qpid, tmp_path):
    broker, d = qpid
    consumer = battery.Queue(broker.port)  # a message without a queue is returned
    battery.freeze(d, broker, tmp_path, routing_key("interop/small"))
    consumer.connection.add_callback_threadsafe(consumer.connection.close)
    broker.stop()
    d.wait_not_ready(broker)
    broker.start()
    d.wait_ready(deadline_s=60)
    consumer = battery.Queue(broker.port)
    battery.publish(d, tmp_path / "again", [battery.body("again", number, 100) for number in range(50)],
                    topic=routing_key("interop/small"))


def test_unroutable_messages_at_qpid_cost_their_own_lane_alone(qpid, box):
    """Qpid's basic.nack comes before its basic.return."""
    broker, d = qpid
    battery.Queue(broker.port)
    beside = Producer(box, d, count=3000, rate=1000, topic=routing_key("interop/load"))
    beside.wait_accepted(200)
    for _ in range(6):
        result = d.publish("--timeout", "20000", "-m", "x", topic="no/queue", deadline_s=40)
        assert result.returncode == 1 and "rejected" in result.stderr, result.stderr
        result = d.publish("--timeout", "20000", "-m", "x", topic="amq.topic/nowhere", deadline_s=40)
        assert result.returncode == 1 and "rejected, code 312" in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 3000}
    assert {link["failures"] for link in d.links()} == {0}


# --- nats-server, the newest ---


def subject(text):
    return text.replace("/", ".")


@pytest.mark.quick
@pytest.mark.parametrize("jetstream", [True, False])
def test_every_message_arrives_once_at_the_newest_nats_server(box, daemon, tmp_path, jetstream):
    server = NewestNats(box).start().stream("S", ["interop.>"])
    d = daemon(entry(server, "nats", nats={"jetstream": jetstream}), ready=False)
    d.wait_ready(deadline_s=30)
    server.large = 100 * 1024
    consumer = harness_nats.Subscriber(server, "interop.>")
    battery.run(d, server, lambda: [message[3] for message in list(consumer.messages)], tmp_path, topic=subject)
    battery.freeze(d, server, tmp_path, "interop.small")
    battery.restart(d, server, tmp_path, "interop.small")


@pytest.mark.quick
@pytest.mark.parametrize("first", ["true", '"auto"', '"1500ms"', "false"])
def test_the_newest_nats_server_may_want_tls_first(box, daemon, tmp_path, first):
    authority = Authority(tmp_path / "ca")
    identity = authority.issue()
    server = NewestNats(box, lines=[
        f'tls {{ cert_file: "{identity.cert}", key_file: "{identity.key}", handshake_first: {first} }}']).start()
    d = daemon(entry(server, "nats", nats={"jetstream": False, "handshake_first": first == "true"},
                     tls={"ca_file": authority.cert}), ready=False)
    d.wait_ready(deadline_s=30)
    assert d.publish("-m", "x").returncode == 0


# --- Valkey ---


@pytest.mark.quick
def test_every_message_arrives_once_at_valkey(box, daemon, tmp_path):
    server = Valkey(box).start()
    d = daemon(entry(server, "redis"), ready=False)
    d.wait_ready(deadline_s=30)
    server.large = 100 * 1024
    streams = {row[3] for row in battery.ROUNDS}
    battery.run(d, server, lambda: [fields[b"body"] for stream in streams for _, fields in server.entries(stream)], tmp_path)
    battery.freeze(d, server, tmp_path)
    battery.restart(d, server, tmp_path)
