"""STOMP pools: a real ActiveMQ, and the sink for behaviour that a real broker cannot be made to show."""

import json
import time

import pytest

from harness import FULL, PATIENCE, Box, Sink, pool, secret, wait_for
from harness_amqp import QueueArrivals
from harness_stomp import ActiveMQ, Consumer, Stomp, available
from load import Arrivals, Producer, check_all_arrived, wait_all_arrived

COUNT = 50000 if FULL else 3000
FAST = {"retry_ms": 50, "retry_max_ms": 500}

needs_activemq = pytest.mark.skipif(not available(), reason="needs activemq and java")


def summary(result):
    """accepted=… delivered=… … of tidegate-pub."""
    line = [line for line in result.stderr.splitlines() if line.startswith("accepted=")][-1]
    words = (word.split("=") for word in line.split())
    return {key: int(value) for key, value in words if value != "0" and key not in ("seconds", "resent")}


def stomp_pool(broker, stomp=None, **changes):
    entry = pool([broker], protocol="stomp", breaker=FAST, **changes)
    del entry["mqtt"]
    return {**entry, "stomp": stomp or {}}


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """One ActiveMQ with users, for all tests that do not kill it."""
    box = Box(tmp_path_factory.mktemp("activemq"))
    broker = ActiveMQ(box, users={"gate": "tide!"}, options=["transport.maxFrameSize=100000"]).start()
    broker.secret = secret(box.path / "passcode", "tide!")
    yield broker
    box.fini()


def login(broker):
    return {"login": "gate", "passcode_file": broker.secret}


def consumer(broker, *destinations):
    return Consumer(broker.port, *destinations, login="gate", passcode="tide!")


def queues(topic, producers=1, lanes=1):
    """The load program's destinations, one for each lane."""
    return [f"{topic}/{number}/{lane}" for number in range(1, producers + 1) for lane in range(lanes)]


# ---- the fields of a message ----

@needs_activemq
@pytest.mark.sanitizers
def test_every_message_arrives_with_its_outcome(daemon, shared, box):
    reader = consumer(shared, *queues("/queue/open.all", lanes=2))
    d = daemon(stomp_pool(shared, login(shared)))
    producer = Producer(box, d, topic="/queue/open.all", count=COUNT, lanes=2, low=10, high=20000, batch=16, ring=1 << 20)
    assert producer.finish() == {"delivered": 2 * COUNT}
    wait_all_arrived([producer], reader)
    assert check_all_arrived([producer], reader) == 0
    reader.close()


@needs_activemq
def test_message_keeps_destination_body_headers_key_and_expiry(daemon, shared):
    reader = consumer(shared, "/queue/open.kept")
    d = daemon(stomp_pool(shared, {**login(shared), "content_type": "text/x-tide"}))
    before = time.time()
    result = d.publish("-k", "a:b", "-H", "colour=gr\\ün: \tx", "-H", "empty=", "--timeout", "5000", "--expiry", "60000",
                       "-m", "Grüße", topic="/queue/open.kept")
    assert result.returncode == 0, result.stderr
    headers, body = reader.wait(1)[0][1:]
    assert body.decode() == "Grüße"
    assert headers["destination"] == "/queue/open.kept"
    assert (headers["tidegate-key"], headers["colour"], headers["empty"]) == ("a:b", "gr\\ün: \tx", "")
    assert headers["content-type"] == "text/x-tide"
    assert headers["persistent"] == "true"
    assert before + 50 < int(headers["expires"]) / 1000 < time.time() + 61
    reader.close()


@needs_activemq
def test_large_and_empty_bodies_arrive_whole(daemon, shared, tmp_path):
    reader = consumer(shared, "/queue/open.sizes")
    d = daemon(stomp_pool(shared, login(shared)))
    body = bytes(range(256)) * 350
    (tmp_path / "large").write_bytes(body)
    assert d.publish("--whole-file", "--ring", str(1 << 20), tmp_path / "large", topic="/queue/open.sizes").returncode == 0
    assert d.publish("-m", "", topic="/queue/open.sizes").returncode == 0
    assert [message.body for message in reader.wait(2)] == [body, b""]
    reader.close()


# ---- refusals ----

@needs_activemq
def test_wrong_passcode_holds_messages_and_says_why(daemon, shared, tmp_path):
    wrong = {"login": "gate", "passcode_file": secret(tmp_path / "wrong", "ebb")}
    d = daemon({**stomp_pool(shared, wrong), "breaker": {"retry_ms": 100, "retry_max_ms": 4000}}, ready=False)
    wait_for(lambda: "password is invalid" in str(d.rows("brokers")), lambda: f"the reason: {d.rows('brokers')}")
    result = d.publish("--timeout", "500", "-m", "x", topic="/queue/open.a")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "expired": 1}
    # Attempts are seconds apart, so that no account is locked.
    assert d.rows("brokers")[0]["attempts"] <= 4, d.rows("brokers")
    assert "ebb" not in d.process.text()


@needs_activemq
def test_missing_rights_reject_the_message_and_no_other(daemon, shared):
    reader = consumer(shared, "/queue/open.rights")
    d = daemon(stomp_pool(shared, login(shared)))
    before = d.links()[0]
    result = d.publish("-m", "x", topic="/queue/closed.a")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}
    assert "not authorized to write to: queue://closed.a" in result.stderr and "65285" in result.stderr
    assert d.publish("-m", "y", topic="/queue/open.rights").returncode == 0
    assert reader.wait(1)[0].body == b"y"
    assert d.links()[0]["failures"] == before["failures"] == 0
    reader.close()


@needs_activemq
def test_invalid_destination_is_refused_before_it_can_hurt_the_link(daemon, shared):
    d = daemon(stomp_pool(shared, login(shared)))
    result = d.publish("-m", "x", topic="/queue/a\x01b")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert "65281" in result.stderr
    assert d.links()[0]["failures"] == 0


NUMBERS = ["priority", "timestamp", "JMSDeliveryMode", "JMSExpiration", "JMSPriority", "JMSTimestamp", "JMSXDeliveryCount",
           "JMSXGroupSeq", "AMQ_SCHEDULED_DELAY", "AMQ_SCHEDULED_PERIOD", "AMQ_SCHEDULED_REPEAT"]


@needs_activemq
def test_messages_activemq_closes_over_silently_are_refused_before_they_can_hurt_the_link(daemon, shared):
    """Each of these was tried on it: the connection is closed, and no ERROR comes."""
    d = daemon(stomp_pool(shared, login(shared)))
    for name in NUMBERS:
        for value in ("abc", "", " 5", "99999999999999999999"):
            result = d.publish("-H", f"{name}={value}", "-m", "x", topic="/queue/open.numbers")
            assert summary(result) == {"accepted": 1, "rejected": 1} and "65283" in result.stderr, (name, value, result.stderr)
        result = d.publish("-H", f"{name}=5", "-m", "x", topic="/queue/open.numbers")
        assert summary(result) == {"accepted": 1, "delivered": 1}, (name, result.stderr)
    result = d.publish("-H", "reply-to=/queue/", "-m", "x", topic="/queue/open.numbers")
    assert summary(result) == {"accepted": 1, "rejected": 1} and "65283" in result.stderr, result.stderr
    for topic in ("/queue/", "/queue/ ", "/topic/", "/remote-temp-queue/", "/remote-temp-topic/\t", " ", "?"):
        result = d.publish("-m", "x", topic=topic)
        assert summary(result) == {"accepted": 1, "rejected": 1} and "65281" in result.stderr, (topic, result.stderr)
    assert d.links()[0]["connects"] == 1, d.links()


@needs_activemq
def test_body_larger_than_the_broker_takes_is_found_and_rejected(daemon, shared, box, tmp_path):
    """ActiveMQ closes the connection and does not say which message was too large: it is sent again
    alone until that is certain, and the others are delivered."""
    reader = consumer(shared, *queues("/queue/open.large"))
    d = daemon(stomp_pool(shared, login(shared)))
    others = Producer(box, d, topic="/queue/open.large", count=2000, rate=1000)
    others.wait_accepted(10)
    (tmp_path / "large").write_bytes(b"x" * 150000)
    result = d.publish("--whole-file", "--ring", str(1 << 20), tmp_path / "large", topic="/queue/open.large")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert "maximum frame size was exceeded" in result.stderr and "65286" in result.stderr
    assert others.finish() == {"delivered": 2000}
    wait_all_arrived([others], reader)
    check_all_arrived([others], reader)
    # Lanes in doubt after the second close ride a separate link.
    assert d.links()[0]["failures"] <= 2, d.links()
    reader.close()


# ---- kill and restart ----

def missing(producers, reader):
    return Arrivals().add_sink(reader).missing(producers)


@needs_activemq
@pytest.mark.long
def test_nothing_is_lost_when_the_broker_is_killed_in_the_middle(daemon, box):
    broker = ActiveMQ(box).start()
    reader = Consumer(broker.port, *queues("/queue/load", 8))
    # Each receipt waits for the disk: more connections share a write.
    d = daemon(stomp_pool(broker, links=8, message_timeout_ms=1200000))
    producers = [Producer(box, d, number, topic="/queue/load", count=COUNT, low=10, high=2000, batch=16, ring=1 << 20,
                          deadline_s=1200) for number in range(1, 9)]
    for producer in producers:
        producer.wait_accepted(COUNT // 4)
    broker.kill()
    d.wait_not_ready(broker)
    broker.start()
    for producer in producers:
        assert producer.finish(1200) == {"delivered": COUNT}
    wait_for(lambda: not missing(producers, reader), lambda: f"the missing: {missing(producers, reader)[:5]}", 120, 0.5)
    duplicates = check_all_arrived(producers, reader)
    resent = sum(link["resent"] for link in d.links())
    # Twice comes what was sent again, and what the consumer had and could not acknowledge in time.
    print(f"{8 * COUNT} messages, {resent} sent again, {duplicates} duplicates")
    assert resent > 0 and duplicates <= resent + 2 * 1000, (resent, duplicates)
    reader.close()


# ---- RabbitMQ's plugin ----


def rabbit_pool(rabbit, **changes):
    entry = pool([rabbit.stomp], protocol="stomp", stomp={"login": "guest", "vhost": "/"}, breaker=FAST, **changes)
    entry["stomp"]["passcode_file"] = secret(rabbit.box.path / "guest", "guest")
    del entry["mqtt"]
    return entry


# Messages over which RabbitMQ closes the session without naming them: destination, words, code. The last is refused
# before it is sent.
REFUSALS = {
    "missing exchange": ("/exchange/nowhere/key", "not_found", "65286"),
    "internal exchange": ("/exchange/stomp-inner/key", "access_refused", "65286"),
    "unknown destination": ("/nonsense/key", "RabbitMQ knows no such destination", "65281"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_messages_rabbitmq_closes_over_are_found_and_rejected(box, daemon, secured_rabbit, case):
    """Other messages pass through the same connection all the while: each arrives, in order."""
    destination, words, code = REFUSALS[case]
    name = "stomp-beside-" + case.partition(" ")[0]
    secured_rabbit.declare(("internal", "stomp-inner", "fanout"), ("queue", name))
    d = daemon(rabbit_pool(secured_rabbit))
    beside = Producer(box, d, count=1500, rate=1500, topic=f"/amq/queue/{name}", words=["-F"])
    beside.wait_accepted(200)
    result = d.publish("-m", "x", topic=destination)
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert words in result.stderr and code in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 1500}
    check_all_arrived([beside], QueueArrivals(secured_rabbit, name, secured_rabbit.depth(name)))
    assert d.links()[0]["failures"] <= 2, d.links()


@pytest.mark.long
def test_nothing_is_lost_when_rabbitmq_is_killed_in_the_middle(box, daemon, secured_rabbit):
    """Persistent messages of a durable queue: a message with a receipt is on the disk."""
    secured_rabbit.declare(("queue", "stomp-kill"))
    d = daemon(rabbit_pool(secured_rabbit, message_timeout_ms=600000))
    producers = [Producer(box, d, number, topic="/amq/queue/stomp-kill", count=COUNT, low=10, high=2000, batch=16,
                          ring=1 << 20, deadline_s=600, rate=0 if FULL else 1000, words=["-F"]) for number in range(1, 9)]
    for producer in producers:
        producer.wait_accepted(COUNT // 3, 300)
    secured_rabbit.kill()
    wait_for(lambda: "ready" not in d.link_states(), "the link to be lost")
    secured_rabbit.start()
    for producer in producers:
        assert producer.finish(600) == {"delivered": COUNT}
    depth, resent = secured_rabbit.depth("stomp-kill"), sum(producer.file.resent for producer in producers)
    duplicates = check_all_arrived(producers, QueueArrivals(secured_rabbit, "stomp-kill", depth))
    print(f"{8 * COUNT} messages, {resent} sent again, {duplicates} duplicates")
    assert depth == 8 * COUNT + duplicates and duplicates <= resent


# ---- the sink ----

@pytest.mark.sanitizers
def test_sink_takes_everything_and_keeps_order(daemon, box):
    sink = Sink(box, protocol="stomp").start()
    d = daemon(stomp_pool(sink, links=2))
    producers = [Producer(box, d, number, topic="/queue/a", count=5000, lanes=2, low=10, high=9000, batch=16, ring=1 << 20)
                 for number in range(1, 4)]
    for producer in producers:
        assert producer.finish() == {"delivered": 10000}
    assert check_all_arrived(producers, sink) == 0


def test_receipts_in_any_order_and_late(daemon, box):
    sink = Sink(box, protocol="stomp", options=["--reorder-acks", "--ack-after", "50"]).start()
    d = daemon(stomp_pool(sink))
    producer = Producer(box, d, topic="/queue/a", count=5000, batch=50)
    assert producer.finish() == {"delivered": 5000}
    assert d.links()[0]["failures"] == 0


def test_error_that_names_a_message_rejects_that_one(daemon, box):
    sink = Sink(box, protocol="stomp", options=["--reject", "1", "--reject-topic", "*bad*", "--reason", "no: thanks"]).start()
    d = daemon(stomp_pool(sink))
    good = Producer(box, d, 1, topic="/queue/a", count=1000, rate=1000)
    bad = Producer(box, d, 2, topic="/queue/bad", count=20)
    assert bad.finish() == {"rejected": 20}
    assert good.finish() == {"delivered": 1000}
    assert "no: thanks" in d.publish("-m", "x", topic="/queue/bad").stderr


@pytest.mark.sanitizers
def test_message_a_broker_closes_over_is_found_and_rejected_and_no_other(daemon, box):
    """The broker names none: after the second close the lanes in doubt ride a link of their own."""
    sink = Sink(box, protocol="stomp", options=["--reject", "2", "--reject-topic", "*poison*", "--reason", "eek",
                                                "--ack-delay", "5"]).start()
    d = daemon(stomp_pool(sink))
    producers = [Producer(box, d, number, topic="/queue/good", count=3000, rate=3000, batch=8) for number in range(1, 4)]
    for producer in producers:
        producer.wait_accepted(100)
    result = d.publish("-m", "x", topic="/queue/poison")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert "eek" in result.stderr and "65286" in result.stderr
    for producer in producers:
        assert producer.finish() == {"delivered": 3000}
    check_all_arrived(producers, sink)
    assert d.links()[0]["failures"] <= 2, d.links()
    # The window opens again: one after the other 3000 messages of 5 ms each would take 15 s.
    started = time.monotonic()
    assert Producer(box, d, 9, topic="/queue/good", count=3000, batch=64).finish() == {"delivered": 3000}
    assert time.monotonic() - started < 10 * PATIENCE


@pytest.mark.parametrize("way", ["--close-after", "--reset-after"])
def test_message_a_living_broker_closes_over_without_a_word_is_rejected(daemon, box, way):
    """The link beside lives all the while: three closes over the message alone are its own."""
    sink = Sink(box, protocol="stomp", options=[way, "1", "--no-ack"]).start()
    d = daemon(stomp_pool(sink))
    result = d.publish("-m", "x", topic="/queue/poison")
    assert result.returncode == 1 and summary(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert "65286" in result.stderr and "/queue/poison" in result.stderr, result.stderr
    assert d.links()[0]["failures"] <= 2, d.links()
    assert d.rows("brokers")[0]["breaker"] == "closed"


def test_repeated_kills_of_the_broker_blame_no_message(daemon, box):
    """All its connections end with it: no link was there to see it live. The message is sent until it is answered."""
    sink = Sink(box, protocol="stomp", options=["--no-ack"]).start()
    d = daemon(stomp_pool(sink))
    producer = Producer(box, d, topic="/queue/a", count=1, words=["-T", "60000"])
    for _ in range(6):
        wait_for(lambda: sum(link["outstanding"] for link in d.rows("links")), lambda: f"a message under way: {d.links()}", 30)
        sink.kill()
        sink.start()
    assert producer.file.completed() == 0
    wait_for(lambda: sum(link["outstanding"] for link in d.rows("links")), lambda: f"a message under way: {d.links()}", 30)
    sink.tell("set", "no-ack", "off")
    assert producer.finish() == {"delivered": 1}


def test_silent_sink_is_found_by_its_missing_heartbeat(daemon, box):
    sink = Sink(box, protocol="stomp").start()
    d = daemon(stomp_pool(sink, health={"idle_ms": 200, "probe_timeout_ms": 100}))
    sink.tell("set", "no-pong", "on")
    d.wait_not_ready(sink)
    sink.tell("set", "no-pong", "off")
    d.wait_ready()


def test_idle_link_keeps_its_promise_of_heartbeats(daemon, box):
    """The sink drops a client that is silent for twice the promised interval."""
    sink = Sink(box, protocol="stomp").start()
    d = daemon(stomp_pool(sink, {"heartbeat_ms": 1000}, health={"idle_ms": 60000, "stall_timeout_ms": 120000}))
    end = time.monotonic() + 5 * PATIENCE
    wait_for(lambda: time.monotonic() > end, "five times the promise", 20)
    assert d.links()[0]["failures"] == 0
    assert sink.stats()["pings"] >= 5, json.dumps(sink.stats())


def test_raw_client_is_served_by_the_sink(box):
    sink = Sink(box, protocol="stomp").start()
    client = Stomp(sink.port)
    client.send("SEND", {"destination": "/queue/a", "receipt": "7", "x\\cy": "1\\n2"}, b"by hand")
    assert client.frame().headers == {"receipt-id": "7"}
    client.send("BEGIN", {"transaction": "t"})
    client.send("ABORT", {"transaction": "t", "receipt": "p:1".replace(":", "\\c")})
    assert client.frame().headers == {"receipt-id": "p:1"}
    assert [(a["topic"], a["headers"], a["body"]) for a in sink.arrivals()] == [("/queue/a", "x:y=1\\n2", "by hand")]
    client.send("SUBSCRIBE", {"destination": "/queue/a", "id": "1"})
    assert client.frame().command == "ERROR"
    with pytest.raises(ConnectionError):
        client.frame()
