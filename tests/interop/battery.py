"""The battery: the same messages and the same faults for every broker and protocol. Each body is compared with the bodies
that an independent consumer received. A test passes a daemon, the broker and a function `received` that returns all bodies
that have come so far, as bytes."""

import collections
import hashlib
import threading

import paho.mqtt.client as paho
import pika

from harness import wait_for

ROUNDS = [  # name, how many, bytes, topic, key, header
    ("small", 300, 100, "interop/small", None, "note=grün"),
    ("empty", 50, 0, "interop/empty", None, None),
    ("words", 200, 120, "interop/größe/温度", "schlüssel", None),
    ("large", 20, None, "interop/large", None, None),
]


class Mqtt:
    """An independent MQTT consumer of everything, in a version that its broker speaks."""

    def __init__(self, port, version, login=None):
        self.bodies = []
        subscribed = threading.Event()
        self.client = paho.Client(client_id="interop", protocol=version)
        if login:
            self.client.username_pw_set(*login)
        self.client.on_connect = lambda client, *_: client.subscribe("interop/#", qos=1)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = lambda _client, _owner, message: self.bodies.append(bytes(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(10), "no SUBACK"

    def received(self):
        return list(self.bodies)


class Queue:
    """An independent AMQP consumer of what the exchange amq.topic gets."""

    def __init__(self, port):
        self.bodies = []
        self.connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port))
        channel = self.connection.channel()
        name = channel.queue_declare("interop", exclusive=True).method.queue
        channel.queue_bind(name, "amq.topic", "interop.#")
        channel.basic_consume(name, lambda _channel, _method, _properties, data: self.bodies.append(data), auto_ack=True)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        try:
            while True:
                self.connection.process_data_events(time_limit=None)
        except pika.exceptions.AMQPError:
            pass  # the broker has ended

    def received(self):
        return list(self.bodies)


def body(name, number, size):
    """Unlike every other; of that size but for the empty one, which is known by its count."""
    if size == 0:
        return b""
    seed = f"{name} {number} ".encode()
    return (seed + hashlib.sha256(seed).hexdigest().encode() * (size // 64 + 1))[:size]


def publish(daemon, path, bodies, *words, topic):
    """One process, one message a body, each of them a line of a file (bodies have no line ends)."""
    path.write_bytes(b"".join(data + b"\n" for data in bodies))
    result = daemon.publish(*words, path, topic=topic, deadline_s=120)
    assert result.returncode == 0, result.stderr
    return result


def run(daemon, broker, received, tmp_path, headers=True, topic=lambda text: text):
    """Publishes the rounds and holds what arrived against them: nothing is missing, doubled or changed."""
    sent = collections.Counter()
    for name, count, size, where, key, header in ROUNDS:
        bodies = [body(name, number, broker.large if size is None else size) for number in range(count)]
        words = (["-k", key] if key else []) + (["-H", header] if header and headers else [])
        if size == 0:
            for _ in range(3):
                assert daemon.publish(*words, "-m", "", topic=topic(where)).returncode == 0
            bodies = [b""] * 3
        else:
            publish(daemon, tmp_path / name, bodies, *words, topic=topic(where))
        sent.update(bodies)
    wait_for(lambda: len(received()) >= sent.total(), lambda: f"{sent.total()} messages; {len(received())} came", 60)
    got = collections.Counter(received())
    assert not sent - got, f"{(sent - got).total()} are missing"
    assert not got - sent, f"{(got - sent).total()} came twice or were never sent"


def freeze(daemon, broker, tmp_path, topic="interop/small"):
    """The broker is stopped for longer than the detection time and goes on: every message is delivered."""
    broker.freeze()
    wait_for(lambda: all(state != "ready" for state in daemon.link_states()), "the link to be suspected", 20)
    broker.thaw()
    daemon.wait_ready(deadline_s=30)
    publish(daemon, tmp_path / "after", [body("after", number, 100) for number in range(50)], topic=topic)


def restart(daemon, broker, tmp_path, topic="interop/small"):
    """The broker ends and another takes its place: the link comes back by itself."""
    broker.stop()
    daemon.wait_not_ready(broker)
    broker.start()
    daemon.wait_ready(deadline_s=60)
    publish(daemon, tmp_path / "again", [body("again", number, 100) for number in range(50)], topic=topic)


def neighbour_of_a_refused_one(daemon, box, producer, topic, *words, good="load"):
    """Messages that the broker refuses, in whatever manner, beside an honest producer: each is rejected, the honest
    one loses nothing. Returns the honest one's outcomes. words: the message, a body of one byte if there are none."""
    beside = producer(box, daemon, count=2000, rate=500, topic=good)
    beside.wait_accepted(100)
    for _ in range(3):
        result = daemon.publish("--timeout", "20000", *(words or ("-m", "x")), topic=topic, deadline_s=40)
        assert result.returncode == 1 and "rejected" in result.stderr, result.stderr
    return beside.finish()


def restarts_under_load(daemon, broker, box, producer, topic="load", count=45000, rate=3000):
    """The broker is ended twice and started again while a process publishes: its outcomes."""
    load = producer(box, daemon, count=count, rate=rate, topic=topic, deadline_s=240)
    for part in (1, 2):
        load.wait_accepted(count * part // 4)
        broker.stop()
        daemon.wait_not_ready(broker)
        broker.start()
        daemon.wait_ready(deadline_s=60)
    return load.finish(300)
