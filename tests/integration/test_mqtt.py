"""One daemon, one real mosquitto: a message's fields, outcomes and refusals."""

import os
import subprocess

import pytest

from harness import FULL, Mosquitto, Sink, need_localhost, pool, secret, wait_for
from load import Producer, check_all_arrived, wait_all_arrived
from paho_subscriber import PahoSubscriber

COUNT = 20000 if FULL else 4000


def summary(result):
    """accepted=… delivered=… … of tidegate-pub."""
    line = [line for line in result.stderr.splitlines() if line.startswith("accepted=")][-1]
    return {key: value for key, value in (word.split("=") for word in line.split())}


def mqtt(version=5, qos=1, **more):
    return {"version": version, "qos": qos, **more}


@pytest.mark.sanitizers
@pytest.mark.parametrize("version", [3, 5])
@pytest.mark.parametrize("qos", [0, 1])
def test_every_message_arrives_with_its_outcome(daemon, mosquitto, box, version, qos):
    version = {3: 4, 5: 5}[version]
    subscriber = mosquitto.subscriber()
    d = daemon(pool([mosquitto], mqtt=mqtt(version=version, qos=qos)))
    producer = Producer(box, d, count=COUNT, lanes=2, low=10, high=20000, batch=16, ring=1 << 20)
    outcomes = producer.finish()
    assert outcomes == {"delivered" if qos else "sent": 2 * COUNT}
    wait_all_arrived([producer], subscriber)
    assert check_all_arrived([producer], subscriber) == 0


@pytest.mark.sanitizers
def test_many_processes_and_lanes_keep_each_lanes_order(daemon, mosquitto, box):
    subscriber = mosquitto.subscriber()
    d = daemon(pool([mosquitto], links=2))
    producers = [Producer(box, d, number, count=COUNT // 2, lanes=4, low=10, high=2000, batch=1 + number * 7)
                 for number in range(1, 5)]
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * 4}
    wait_all_arrived(producers, subscriber)
    assert check_all_arrived(producers, subscriber) == 0


def test_message_keeps_topic_body_headers_and_expiry(daemon, mosquitto):
    subscriber = PahoSubscriber(mosquitto.port)
    d = daemon(pool([mosquitto]))
    result = d.publish("-H", "colour=grün", "-H", "colour=red", "--timeout", "5000", "--expiry", "60000",
                       "-m", "Grüße", topic="a/b c/ü")
    assert result.returncode == 0, result.stderr
    message = subscriber.wait(1)[0]
    assert message.topic == "a/b c/ü"
    assert message.payload.decode() == "Grüße"
    assert [tuple(pair) for pair in message.properties.UserProperty] == [("colour", "grün"), ("colour", "red")]
    assert 50 <= message.properties.MessageExpiryInterval <= 60
    assert message.qos == 1 and not message.retain


def test_deadline_is_not_the_brokers_business(daemon, mosquitto):
    """It bounds the trying: the broker keeps a message that it has by then for late subscribersr."""
    subscriber = PahoSubscriber(mosquitto.port)
    d = daemon(pool([mosquitto]))
    assert d.publish("--timeout", "2s", "-m", "x").returncode == 0
    assert not hasattr(subscriber.wait(1)[0].properties, "MessageExpiryInterval")


@pytest.mark.parametrize("version", [4, 5])
def test_message_past_its_expiry_is_not_sent(box, daemon, version):
    """In MQTT 3.1.1 too, whose brokers do not hear of it."""
    d = daemon(pool([Mosquitto(box)], mqtt=mqtt(version=version)), ready=False)
    result = d.publish("--expiry", "300", "-m", "x")
    assert summary(result)["expired"] == "1"


def test_retained_message_reaches_later_subscribers(daemon, mosquitto):
    d = daemon(pool([mosquitto]))
    assert d.publish("--retain", "-m", "kept", topic="state/x").returncode == 0
    assert d.publish("-m", "not kept", topic="state/y").returncode == 0
    subscriber = PahoSubscriber(mosquitto.port)
    message = subscriber.wait(1)[0]
    assert (message.topic, message.payload, message.retain) == ("state/x", b"kept", True)


def test_lines_of_a_file_arrive_in_order(daemon, mosquitto, tmp_path):
    subscriber = PahoSubscriber(mosquitto.port)
    d = daemon(pool([mosquitto]))
    lines = [f"line {number}".encode() for number in range(500)]
    (tmp_path / "lines").write_bytes(b"\n".join(lines) + b"\n")
    result = d.publish(tmp_path / "lines")
    assert result.returncode == 0, result.stderr
    assert summary(result)["delivered"] == "500"
    assert [message.payload for message in subscriber.wait(500)] == lines


@pytest.mark.parametrize("version", [4, 5])
def test_right_password_is_let_in(box, daemon, tmp_path, version):
    broker = Mosquitto(box, users={"gate": "tide!"}).start()
    secret(tmp_path / "pw", "tide!")
    d = daemon(pool([broker], mqtt=mqtt(version=version, username="gate", password_file=tmp_path / "pw")))
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.sanitizers
@pytest.mark.parametrize("version", [4, 5])
def test_wrong_password_holds_messages_and_says_why(box, daemon, tmp_path, version):
    broker = Mosquitto(box, users={"gate": "tide!"}).start()
    secret(tmp_path / "pw", "ebb")
    d = daemon(pool([broker], mqtt=mqtt(version=version, username="gate", password_file=tmp_path / "pw")), ready=False)
    wait_for(lambda: "not auth" in str(d.rows("brokers")).lower() or "password" in str(d.rows("brokers")).lower(),
             lambda: f"the broker's row to say why: {d.rows('brokers')}")
    assert "ready" not in d.link_states()
    result = d.publish("--timeout", "300", "-m", "x")
    assert result.returncode == 1
    assert summary(result)["expired"] == "1" and summary(result)["delivered"] == "0"
    # The broker is not hammered: attempts back off.
    assert broker.process.text().count("New connection") < 20
    assert "ebb" not in d.process.text() and "ebb" not in str(d.rows("brokers"))


@pytest.mark.parametrize("topic", ["a/#", "a/+/b", "", "a\x01b"])
def test_bad_topic_is_refused_before_it_can_hurt_the_link(daemon, mosquitto, topic):
    d = daemon(pool([mosquitto], mqtt=mqtt(version=4)))
    before = d.links()[0]
    result = d.publish("-m", "x", topic=topic)
    assert result.returncode != 0
    if topic != "":  # an empty one is refused by the tool or the library already
        assert summary(result)["rejected"] == "1"
    assert d.publish("-m", "y", topic="good").returncode == 0
    assert d.links()[0]["state"] == before["state"]
    assert mosquitto.process.text().count("New client connected") == 1


@pytest.mark.parametrize("version", [4, 5])
def test_topic_a_broker_would_close_over_is_refused_before(daemon, mosquitto, version):
    """Mosquitto takes 200 slashes and closes over one more, in 3.1.1 without a word. $SYS is its own."""
    d = daemon(pool([mosquitto], mqtt=mqtt(version=version)))
    for topic in ("a" + "/" * 201, "$SYS/x", "$x", "a/+", "a/#"):
        result = d.publish("-m", "x", topic=topic)
        assert result.returncode == 1 and "rejected, code 65281" in result.stderr, (topic[:10], result.stderr)
    assert d.publish("-m", "x", topic="a" + "/" * 200).returncode == 0
    assert d.links()[0]["failures"] == 0, d.links()


@pytest.mark.parametrize("how,code", [("error:0x87", 135), ("both:0x87", 135), ("error:0x97", 151), ("error:0x9b", 155)])
def test_message_a_broker_disconnects_over_is_rejected_and_the_pool_goes_on(box, daemon, how, code):
    """It is not the pool's credentials that are wrong. All other messages on that connection arrive."""
    sink = Sink(box, options=["--faults", f"bad/*={how}"]).start()
    d = daemon(pool([sink], breaker={"retry_ms": 50, "retry_max_ms": 20000}))
    beside = Producer(box, d, count=1500, rate=1500)
    beside.wait_accepted(200)
    result = d.publish("-m", "x", topic="bad/one")
    assert result.returncode == 1 and f"rejected, code {code}" in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 1500}
    assert check_all_arrived([beside], sink) >= 0
    assert "credentials" not in d.process.text()


def test_broker_that_says_no_gives_rejected_with_its_code(box, daemon):
    broker = Mosquitto(box, acl=["topic write open/#"]).start()
    d = daemon(pool([broker]))
    result = d.publish("-m", "x", topic="closed/a")
    assert result.returncode == 1
    assert summary(result)["rejected"] == "1"
    assert "135" in result.stderr or "0x87" in result.stderr
    assert d.publish("-m", "x", topic="open/a").returncode == 0


def test_body_larger_than_the_broker_takes_is_rejected_and_the_link_lives(box, daemon, tmp_path):
    broker = Mosquitto(box, lines=["max_packet_size 5000"]).start()
    d = daemon(pool([broker]))
    (tmp_path / "large").write_bytes(b"x" * 6000)
    result = d.publish("--whole-file", tmp_path / "large")
    assert result.returncode == 1 and summary(result)["rejected"] == "1", result.stderr
    assert d.publish("-m", "small").returncode == 0
    assert broker.process.text().count("New client connected") == 1


def test_body_of_a_mebibyte_arrives_whole(daemon, mosquitto, tmp_path):
    subscriber = PahoSubscriber(mosquitto.port)
    d = daemon(pool([mosquitto]))
    body = os.urandom(1 << 20)
    (tmp_path / "large").write_bytes(body)
    result = d.publish("--whole-file", "--ring", str(4 << 20), tmp_path / "large")
    assert result.returncode == 0, result.stderr
    assert subscriber.wait(1)[0].payload == body


def test_empty_body_arrives(daemon, mosquitto):
    subscriber = PahoSubscriber(mosquitto.port)
    d = daemon(pool([mosquitto]))
    assert d.publish("-m", "").returncode == 0
    assert subscriber.wait(1)[0].payload == b""


def test_message_published_before_the_broker_is_up_is_delivered_when_it_is(box, daemon):
    broker = Mosquitto(box)
    d = daemon(pool([broker], breaker={"retry_ms": 100, "retry_max_ms": 300}), ready=False)
    producer = Producer(box, d, count=100)
    producer.wait_accepted(100)
    assert producer.file.completed() == 0
    broker.start()
    assert producer.finish() == {"delivered": 100}


def test_message_expires_honestly_when_no_broker_comes(box, daemon):
    broker = Mosquitto(box)
    d = daemon(pool([broker]), ready=False)
    producer = Producer(box, d, count=100, words=["-T", "200"])
    assert producer.finish() == {"expired": 100}


def test_broker_by_name_and_over_ipv6(box, daemon):
    need_localhost()
    broker = Mosquitto(box, lines=[])
    broker.config.write_text(broker.config.read_text().replace(f"listener {broker.port} 127.0.0.1",
                                                               f"listener {broker.port}"))
    broker.start()
    for number, address in enumerate((f"localhost:{broker.port}", f"[::1]:{broker.port}", f"127.0.0.1:{broker.port}")):
        d = daemon(pool([address]), name=f"tidegated{number}")
        assert d.publish("-m", address).returncode == 0, address
        assert d.stop() == 0


def test_receive_maximum_of_the_broker_is_kept(box, daemon):
    """A client that exceeds it is disconnected with 0x93; mosquitto announces max_inflight_messages."""
    broker = Mosquitto(box, lines=["max_inflight_messages 7"])
    broker.config.write_text(broker.config.read_text().replace("max_inflight_messages 0\n", ""))
    broker.start()
    d = daemon(pool([broker]))
    producer = Producer(box, d, count=5000, batch=64)
    assert producer.finish() == {"delivered": 5000}
    assert broker.process.text().count("New client connected") == 1, broker.process.text()


def test_mosquitto_clients_see_the_published_messages(daemon, mosquitto):
    """Debian's own command-line client, as a user would check."""
    subscriber = subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", "-h", "127.0.0.1", "-p", str(mosquitto.port), "-t", "seen", "-C", "1", "-W", "20",
                                   "-d"], stdout=subprocess.PIPE, text=True)
    for line in subscriber.stdout:
        if "received SUBACK" in line:
            break
    d = daemon(pool([mosquitto]))
    assert d.publish("-m", "by mosquitto_sub", topic="seen").returncode == 0
    output = subscriber.communicate(timeout=20)[0]
    assert subscriber.returncode == 0 and "by mosquitto_sub" in output
