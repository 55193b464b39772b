"""The battery: the same messages and the same faults for every broker and protocol. Each body is compared with the bodies
that an independent consumer received. A test passes a daemon, the broker and a function `received` that returns all bodies
that have come so far, as bytes."""

import collections
import hashlib
import threading

import paho.mqtt.client as paho

from harness import wait_for

ROUNDS = [  # name, how many, bytes, topic, key, header
    ("small", 300, 100, "interop/small", None, "note=grün"),
    ("empty", 50, 0, "interop/empty", None, None),
    ("words", 200, 120, "interop/größe/温度", "schlüssel", None),
    ("large", 20, None, "interop/large", None, None),
]


class Mqtt:
    """An independent MQTT consumer of everything, in a version that its broker speaks."""

    def __init__(self, port, version):
        self.bodies = []
        subscribed = threading.Event()
        self.client = paho.Client(client_id="interop", protocol=version)
        self.client.on_connect = lambda client, *_: client.subscribe("interop/#", qos=1)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = lambda _client, _owner, message: self.bodies.append(bytes(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert subscribed.wait(10), "no SUBACK"

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


def freeze(daemon, broker, tmp_path):
    """The broker is stopped for longer than the detection time and goes on: every message is delivered."""
    broker.freeze()
    wait_for(lambda: all(state != "ready" for state in daemon.link_states()), "the link to be suspected", 20)
    broker.thaw()
    daemon.wait_ready(deadline_s=30)
    publish(daemon, tmp_path / "after", [body("after", number, 100) for number in range(50)], topic="interop/small")


def restart(daemon, broker, tmp_path):
    """The broker ends and another takes its place: the link comes back by itself."""
    broker.stop()
    daemon.wait_not_ready(broker)
    broker.start()
    daemon.wait_ready(deadline_s=60)
    publish(daemon, tmp_path / "again", [body("again", number, 100) for number in range(50)], topic="interop/small")


def neighbour_of_a_denied_one(daemon, box, producer, topic):
    """Messages that the broker refuses, in whatever manner, beside an honest producer: each is rejected, the honest
    one loses nothing. Returns the honest one's outcomes."""
    beside = producer(box, daemon, count=2000, rate=500)
    beside.wait_accepted(100)
    for _ in range(3):
        result = daemon.publish("--timeout", "20000", "-m", "x", topic=topic, deadline_s=40)
        assert result.returncode == 1 and "rejected" in result.stderr, result.stderr
    return beside.finish()
