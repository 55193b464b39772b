"""The AMQP driver against a real RabbitMQ: delivery, and the exact completion of refused messages."""

import os
import re

import pytest

import harness_amqp
from harness import FULL, Box, Sink, pool, said, wait_for
from harness_amqp import QueueArrivals, Rabbit
from load import Producer, check_all_arrived

FAST = {
    "health": {"connect_timeout_ms": 1000, "probe_timeout_ms": 300, "idle_ms": 500, "probe_misses": 3,
               "ack_timeout_ms": 2000, "stall_timeout_ms": 5000},
    "breaker": {"retry_ms": 100, "retry_max_ms": 500, "slow_start_ms": 500},
}


@pytest.fixture(scope="session")
def rabbits(tmp_path_factory):
    """The session's RabbitMQ, started when the first test wants it."""
    if not harness_amqp.available():
        pytest.skip("rabbitmq-server is not installed")
    box = Box(tmp_path_factory.mktemp("rabbit"))
    try:
        yield Rabbit(box, lines=["max_message_size = 200000"]).start()
    finally:
        box.fini()


@pytest.fixture
def rabbit(rabbits):
    if not rabbits.process.alive():
        rabbits.start()
    return rabbits


def amqp(brokers, **changes):
    entry = pool(brokers, protocol="amqp", **{"amqp": {}, **changes})
    del entry["mqtt"]
    return entry


def test_message_arrives_with_all_it_has(daemon, rabbit):
    rabbit.declare(("queue", "all"), ("exchange", "all", "topic"), ("bind", "all", "all", "orders.#"))
    d = daemon(amqp([rabbit], amqp={"content_type": "text/plain"}))
    result = d.publish("-k", "key 1", "-H", "trace=id 7", "--timeout", "5000", "--expiry", "60000", "-m", "hello", topic="all/orders.new")
    assert result.returncode == 0, result.stderr
    method, properties, body = rabbit.drain("all", 1)[0]
    assert body == b"hello"
    assert (method.exchange, method.routing_key) == ("all", "orders.new")
    assert properties.headers == {"tidegate-key": "key 1", "trace": "id 7"}
    assert properties.delivery_mode == 2 and properties.content_type == "text/plain"
    assert 50000 < int(properties.expiration) <= 60000
    assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", properties.message_id)


@pytest.mark.parametrize("topic", ["plain", "/plain"])
def test_topic_without_exchange_is_a_queue(daemon, rabbit, topic):
    rabbit.declare(("queue", "plain"))
    d = daemon(amqp([rabbit]))
    assert d.publish("-m", topic, topic=topic).returncode == 0
    assert rabbit.drain("plain", 1)[0][2] == topic.encode()


def test_fixed_exchange_takes_the_whole_topic_as_key(daemon, rabbit):
    rabbit.declare(("queue", "fixed"), ("exchange", "fixed", "direct"), ("bind", "fixed", "fixed", "a/b.c"))
    d = daemon(amqp([rabbit], amqp={"exchange": "fixed"}))
    assert d.publish("-m", "x", topic="a/b.c").returncode == 0
    assert rabbit.drain("fixed", 1)[0][0].routing_key == "a/b.c"


def test_large_body_is_split_and_arrives_whole(daemon, rabbit, tmp_path):
    """frame_max is 128 KiB."""
    rabbit.declare(("queue", "large"))
    d = daemon(amqp([rabbit]))
    body = os.urandom(199999)
    (tmp_path / "large").write_bytes(body)
    result = d.publish("--whole-file", "--ring", str(4 << 20), tmp_path / "large", topic="large")
    assert result.returncode == 0, result.stderr
    assert rabbit.drain("large", 1)[0][2] == body


# RabbitMQ's refusals: topic, words and code of the completion.
REFUSALS = {
    "missing exchange": ("nowhere/key", "no exchange 'nowhere'", 404),
    "internal exchange": ("inner/key", "internal exchange 'inner'", 403),
    "unroutable": ("fan/nobody", "NO_ROUTE", 312),
    "missing queue": ("no-such-queue", "NO_ROUTE", 312),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_message_is_rejected_with_the_brokers_words_and_hurts_no_other(box, daemon, rabbit, case):
    """Another lane's messages pass through the same connection all the while."""
    topic, words, code = REFUSALS[case]
    queue = "beside-" + case.replace(" ", "-")
    rabbit.declare(("queue", queue), ("exchange", "fan", "fanout"), ("internal", "inner", "fanout"),
                   ("exchange", queue, "fanout"), ("bind", queue, queue, ""))
    d = daemon(amqp([rabbit]))
    beside = Producer(box, d, count=3000, rate=1500, topic=queue)
    beside.wait_accepted(200)
    for _ in range(3):
        result = d.publish("-m", "a", topic=topic)
        assert result.returncode == 1 and said(result) == {"accepted": 1, "rejected": 1}, result.stderr
        assert words in result.stderr, result.stderr
        assert f"code {code} " in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 3000}
    assert beside.file.resent == 0
    assert check_all_arrived([beside], QueueArrivals(rabbit, queue, 3000)) == 0
    assert d.link_states() == ["ready"] and d.links()[0]["connects"] == 1


def test_no_permission_is_403(box, daemon, rabbit, tmp_path):
    rabbit.declare(("exchange", "closed", "fanout"), ("queue", "open"), ("exchange", "open", "fanout"),
                   ("bind", "open", "open", ""))
    rabbit.eval('rabbit_auth_backend_internal:add_user(<<"limited">>, <<"secret">>, <<"test">>)',
                'rabbit_auth_backend_internal:set_permissions(<<"limited">>, <<"/">>, <<"^$">>, <<"^open$">>, <<"^$">>, <<"test">>)')
    (tmp_path / "pw").write_text("secret\n")
    (tmp_path / "pw").chmod(0o600)
    d = daemon(amqp([rabbit], amqp={"username": "limited", "password_file": tmp_path / "pw"}))
    assert d.publish("-m", "x", topic="open/a").returncode == 0
    result = d.publish("-m", "x", topic="closed/a")
    assert said(result) == {"accepted": 1, "rejected": 1}
    assert "code 403 " in result.stderr and "access to exchange 'closed'" in result.stderr, result.stderr
    assert d.publish("-m", "x", topic="open/a").returncode == 0
    assert len(rabbit.drain("open", 2)) == 2


def test_body_too_large_is_406_once_and_known_from_then_on(box, daemon, rabbit, tmp_path):
    rabbit.declare(("queue", "limit"))
    d = daemon(amqp([rabbit]))
    (tmp_path / "large").write_bytes(b"x" * 200001)
    codes = []
    for _ in range(2):
        result = d.publish("--whole-file", "--ring", str(4 << 20), tmp_path / "large", topic="limit")
        assert said(result) == {"accepted": 1, "rejected": 1}, result.stderr
        assert "200000" in result.stderr, result.stderr
        codes.append(re.search(r"rejected, code (\d+)", result.stderr).group(1))
    assert codes == ["406", str(0xFF02)]
    assert d.publish("-m", "small", topic="limit").returncode == 0
    assert d.links()[0]["connects"] == 1


def test_one_large_body_among_many_small_costs_no_message(box, daemon, rabbit, tmp_path):
    """The broker closes the channel without naming the message: the driver finds it, and the others arrive."""
    rabbit.declare(("queue", "among"), ("exchange", "among", "fanout"), ("bind", "among", "among", ""))
    d = daemon(amqp([rabbit], window={"messages": 200, "low": 100}))
    producers = [Producer(box, d, number, count=2000, rate=2000, topic="among", batch=8) for number in (1, 2)]
    producers[0].wait_accepted(300)
    (tmp_path / "large").write_bytes(b"x" * 200001)
    result = d.publish("--whole-file", "--ring", str(4 << 20), tmp_path / "large", topic="among/x")
    assert said(result) == {"accepted": 1, "rejected": 1}, result.stderr
    for producer in producers:
        assert producer.finish() == {"delivered": 2000}
    arrivals = QueueArrivals(rabbit, "among", rabbit.depth("among"))
    duplicates = check_all_arrived(producers, arrivals)
    assert duplicates <= 200, "more than were in flight when the channel was closed"
    assert d.links()[0]["connects"] == 1


@pytest.mark.parametrize("topic", ["", "/", "x" * 256, "e" * 256 + "/k", "e/" + "k" * 256, "bad\x01topic"])
def test_topic_amqp_cannot_express_is_rejected_by_the_daemon(daemon, rabbit, topic):
    rabbit.declare(("queue", "good"))
    d = daemon(amqp([rabbit]))
    result = d.publish("-m", "x", topic=topic)
    assert result.returncode != 0
    if topic != "":  # an empty one is refused by the tool or the library already
        assert said(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert d.publish("-m", "y", topic="good").returncode == 0
    assert d.links()[0]["connects"] == 1


def test_wrong_password_is_said_and_not_hammered(box, daemon, rabbit, tmp_path):
    (tmp_path / "pw").write_text("wrong\n")
    (tmp_path / "pw").chmod(0o600)
    before = rabbit.log().count("PLAIN login refused")
    d = daemon(amqp([rabbit], amqp={"username": "guest", "password_file": tmp_path / "pw"},
                    breaker={"retry_ms": 100, "retry_max_ms": 60000}), ready=False)
    wait_for(lambda: "ACCESS_REFUSED" in str(d.rows("brokers")), lambda: f"the reason: {d.rows('brokers')}")
    result = d.publish("--timeout", "1500", "-m", "x", topic="q")
    assert said(result) == {"accepted": 1, "expired": 1}, result.stderr
    assert rabbit.log().count("PLAIN login refused") - before <= 2
    assert d.process.alive()


def test_missing_vhost_is_said(daemon, rabbit):
    d = daemon(amqp([rabbit], amqp={"vhost": "nowhere"}), ready=False)
    wait_for(lambda: "vhost nowhere not found" in str(d.rows("brokers")), lambda: f"the reason: {d.rows('brokers')}")


def test_memory_alarm_makes_it_unwritable_and_nothing_else(box, daemon, rabbit):
    """No reconnect, nothing lost, the other broker carries what comes meanwhile."""
    rabbit.declare(("queue", "alarm"), ("exchange", "alarm", "fanout"), ("bind", "alarm", "alarm", ""))
    other = Sink(box, protocol="amqp").start()
    d = daemon(amqp([rabbit, other], **FAST))
    seconds = 60 if FULL else 4
    rate = 400
    producers = [Producer(box, d, number, count=rate * (seconds + 4), rate=rate, topic="alarm", deadline_s=120)
                 for number in (1, 2, 3, 4)]
    producers[0].wait_accepted(rate)
    rabbit.eval("rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []})")
    try:
        wait_for(lambda: d.link_states(rabbit) == ["suspect"], lambda: f"the link suspect: {d.links()}", 10)
        assert "blocked" in str(d.rows("links")).lower()
        before = [producer.file.completed() for producer in producers]
        wait_for(lambda: all(p.file.completed() > b + rate * seconds * 0.6 for p, b in zip(producers, before)),
                 "the other broker to carry on", 20 + seconds)
        assert d.link_states(rabbit) == ["suspect"]
    finally:
        rabbit.eval("rabbit_alarm:clear_alarm({resource_limit, memory, node()})")
    d.wait_ready(rabbit)
    for producer in producers:
        assert producer.finish(150) == {"delivered": producer.count}
    assert d.links(rabbit)[0]["connects"] == 1
    arrivals = QueueArrivals(rabbit, "alarm", rabbit.depth("alarm"))
    assert arrivals.messages
    check_all_arrived(producers, arrivals, other, order=False)


@pytest.mark.long
def test_kill_and_restart_in_the_middle_loses_nothing(box, daemon, rabbit):
    rabbit.declare(("queue", "kill"), ("exchange", "kill", "topic"), ("bind", "kill", "kill", "#"))
    d = daemon(amqp([rabbit], **FAST, message_timeout_ms=120000))
    count = 50000 if FULL else 2500
    producers = [Producer(box, d, number, count=count, topic="kill", low=10, high=2000, batch=8, ring=1 << 20,
                          rate=0 if FULL else 800, deadline_s=600) for number in range(1, 9)]
    wait_for(lambda: sum(p.file.completed() for p in producers) > 8 * count * 0.4, "the middle", 300)
    rabbit.kill()
    d.wait_not_ready(rabbit)
    rabbit.start()
    resent = 0
    for producer in producers:
        assert producer.finish(600) == {"delivered": count}
        resent += producer.file.resent
    depth = rabbit.depth("kill")
    duplicates = check_all_arrived(producers, QueueArrivals(rabbit, "kill", depth))
    assert depth == 8 * count + duplicates
    assert duplicates <= resent
    print(f"{8 * count} messages, {resent} resent, {duplicates} twice")


# --- tidegate-sink as an AMQP broker ---


@pytest.fixture
def sink(box):
    return Sink(box, protocol="amqp").start()


def test_another_client_publishes_to_the_sink(sink):
    pika = pytest.importorskip("pika")
    connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", sink.port))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.exchange_declare("ex", passive=True)
    for body in (b"one", b"", b"x" * 300000):
        channel.basic_publish("ex", "key", body, pika.BasicProperties(headers={"tidegate-key": "k", "a": "b"}))
    connection.close()
    rows = sink.arrivals()
    assert [row["body"] for row in rows] == ["one", "", "x" * 300000]
    assert (rows[0]["topic"], rows[0]["key"], rows[0]["headers"]) == ("ex/key", "k", "a=b")


@pytest.mark.parametrize("code", [404, 506])
def test_some_rejected_by_the_sink_and_the_others_arrive_once_or_are_sent_again(box, daemon, sink, code):
    """404 closes the channel: the other messages on it are sent again. 506 is a nack."""
    d = daemon(amqp([sink]))
    sink.tell("set", "reject", str(code))
    sink.tell("set", "reject-every", "500")
    producers = [Producer(box, d, number, count=2000, rate=3000, topic=f"ex{number}") for number in (1, 2)]
    outcomes = [producer.finish() for producer in producers]
    rejected = sum(outcome.get("rejected", 0) for outcome in outcomes)
    assert rejected + sum(outcome["delivered"] for outcome in outcomes) == 4000
    assert d.links()[0]["connects"] == 1
    if code == 506:
        assert rejected == 8 and sink.stats()["recorded"] == 4000 - rejected
    times = {body for body in sink.body_starts()}
    assert len(times) >= 4000 - rejected


@pytest.mark.parametrize("how", ["reorder-acks", "ack-delay"])
def test_acknowledgements_of_any_order_are_understood(box, daemon, sink, how):
    d = daemon(amqp([sink]))
    sink.tell("set", how, "on" if how == "reorder-acks" else "20")
    producer = Producer(box, d, count=5000, batch=32, topic="ex")
    assert producer.finish() == {"delivered": 5000}
    assert check_all_arrived([producer], sink) == 0
    assert d.links()[0]["connects"] == 1


def test_second_acknowledgement_ends_the_link_and_loses_nothing(box, daemon, sink):
    d = daemon(amqp([sink], **FAST))
    sink.tell("set", "duplicate-acks", "on")
    producer = Producer(box, d, count=200, topic="ex")
    wait_for(lambda: d.links()[0]["connects"] > 1, "the link to be given up")
    sink.tell("set", "duplicate-acks", "off")
    assert producer.finish() == {"delivered": 200}
    check_all_arrived([producer], sink, order=False)


def test_sinks_killed_in_turn_lose_nothing(box, daemon):
    sinks = [Sink(box, name, protocol="amqp").start() for name in ("a", "b")]
    d = daemon(amqp(sinks, **FAST))
    producers = [Producer(box, d, number, count=6000, rate=1500, low=10, high=4000, batch=8, ring=1 << 20, topic="ex")
                 for number in (1, 2, 3)]
    for sink in sinks:
        producers[0].wait_accepted(producers[0].file.accepted() + 1500)
        sink.kill()
        d.wait_not_ready(sink)
        sink.start()
        d.wait_ready(sink)
    for producer in producers:
        assert producer.finish() == {"delivered": 6000}
    check_all_arrived(producers, *sinks)


def test_wrong_password_at_the_sink(box, daemon, tmp_path):
    (tmp_path / "good").write_text("right\n")
    (tmp_path / "pw").write_text("wrong\n")
    (tmp_path / "pw").chmod(0o600)
    sink = Sink(box, protocol="amqp", options=["--auth", f"u:{tmp_path}/good"]).start()
    d = daemon(amqp([sink], amqp={"username": "u", "password_file": tmp_path / "pw"}), ready=False)
    wait_for(lambda: "ACCESS_REFUSED" in str(d.rows("brokers")), lambda: f"the reason: {d.rows('brokers')}")


# --- TLS, and certificates in place of passwords ---


def external(rabbit, identity=None, **changes):
    tls = {"ca_file": rabbit.authority.cert}
    if identity is not None:
        tls |= {"cert_file": identity.cert, "key_file": identity.key}
    return amqp([rabbit.tls], amqp={"sasl": "external"}, tls=tls, **changes)


def test_external_is_let_in_by_its_certificate(daemon, secured_rabbit):
    """RabbitMQ takes the certificate's common name for the user, and its rights are that user's."""
    secured_rabbit.add_user("barge", "never sent", write="^open$")
    secured_rabbit.declare(("queue", "by-certificate"), ("exchange", "open", "fanout"), ("exchange", "shut", "fanout"),
                           ("bind", "open", "by-certificate", ""))
    d = daemon(external(secured_rabbit, secured_rabbit.authority.issue("barge", names=None), **FAST))
    assert d.links()[0]["tls"].startswith("TLS")
    assert d.publish("-m", "hello", topic="open/a").returncode == 0
    result = d.publish("-m", "x", topic="shut/a")
    assert said(result) == {"accepted": 1, "rejected": 1} and "code 403 " in result.stderr, result.stderr
    assert "user 'barge'" in result.stderr, result.stderr
    (_, properties, body), = secured_rabbit.drain("by-certificate", 1)
    assert body == b"hello" and properties.delivery_mode == 2
    connections = secured_rabbit.ctl("list_connections", "user", "auth_mechanism", "ssl", "--no-table-headers").split()
    assert connections == ["barge", "EXTERNAL", "true"], connections
    # A reconnect shows it again.
    secured_rabbit.eval('rabbit_networking:close_all_user_connections(<<"barge">>, <<"test">>)')
    wait_for(lambda: d.links()[0]["connects"] == 2, lambda: f"another connection: {d.links()}")
    d.wait_ready()
    assert d.publish("-m", "again", topic="open/a").returncode == 0


@pytest.mark.parametrize("subject", ["stowaway", None], ids=["unknown", "none"])
def test_external_without_a_known_certificate_is_refused(daemon, secured_rabbit, subject):
    """With one of a name that is no user's, and without any."""
    words = "ACCESS_REFUSED - Login was refused using authentication mechanism EXTERNAL"
    identity = secured_rabbit.authority.issue(subject, names=None) if subject else None
    d = daemon(external(secured_rabbit, identity, breaker={"retry_ms": 100, "retry_max_ms": 60000}), ready=False)
    wait_for(lambda: words in str(d.rows("pools")[0]["failing"]), lambda: f"the reason: {d.rows('pools')}")
    assert said(d.publish("--timeout", "300", "-m", "x", topic="q")) == {"accepted": 1, "expired": 1}
    assert d.rows("brokers")[0]["attempts"] == 1
