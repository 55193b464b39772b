"""STOMP brokers from the package registries: Artemis answers each frame behind a bad one with an ERROR of its own."""

import pytest

import battery
import harness_stomp
from harness import pool, secret
from load import Producer
from peers import ActiveMq6, Artemis


@pytest.fixture
def served(box, daemon):
    """A broker of a kind, and a daemon that is linked to it."""
    def start(kind, **more):
        broker = kind(box, protocol="stomp", **more).start()
        entry = pool([broker], protocol="stomp", links=2,
                     stomp={"login": "u", "passcode_file": secret(box.path / "pw", "secret")})
        del entry["mqtt"]
        d = daemon(entry, ready=False)
        d.wait_ready(deadline_s=30)
        return broker, d
    return start


def destination(text):
    return "/queue/" + text.replace("/", ".")


@pytest.mark.parametrize("kind", [Artemis, ActiveMq6])
def test_every_message_arrives_once_as_it_was(served, tmp_path, kind):
    broker, d = served(kind)
    consumer = harness_stomp.Consumer(broker.port, *{destination(row[3]) for row in battery.ROUNDS}, login="u", passcode="secret")
    battery.run(d, broker, lambda: [message.body for message in consumer.messages], tmp_path, topic=destination)


@pytest.mark.parametrize("kind", [Artemis, ActiveMq6])
def test_it_is_left_when_it_freezes_and_found_when_it_is_back(served, tmp_path, kind):
    broker, d = served(kind)
    battery.freeze(d, broker, tmp_path, destination("small"))
    battery.restart(d, broker, tmp_path, destination("small"))


def test_artemis_may_restart_under_load(box, served):
    broker, d = served(Artemis)
    assert battery.restarts_under_load(d, broker, box, Producer, destination("load")) == {"delivered": 45000}


def test_what_lies_behind_a_denied_message_is_not_rejected(box, served):
    """Each frame behind a denied one is answered "Connection is not valid"; none of those is refused for good."""
    _, d = served(Artemis, deny="denied")
    beside = Producer(box, d, count=8000, rate=2000)
    beside.wait_accepted(200)
    for _ in range(6):
        result = d.publish("--timeout", "20000", "-m", "x", topic="denied.1", deadline_s=40)
        assert result.returncode == 1 and "rejected, code 65285" in result.stderr and "AMQ229032" in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 8000}
