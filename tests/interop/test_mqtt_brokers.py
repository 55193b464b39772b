"""MQTT brokers from the package registries. Skipped, in words, where fetch.py has not brought one."""

import pytest

import battery
from harness import pool, secret
from load import Producer
from peers import (ActiveMq6, Aedes, Amqtt, Artemis, ClosingHiveMq, Ejabberd, HiveMq, Mochi, Moquette, NatsMqtt, RabbitMqtt,
                   Rumqttd, Rumqttd3)

QUICK = [pytest.param(kind, marks=pytest.mark.quick) for kind in (Mochi, Aedes, Amqtt, NatsMqtt)]
BROKERS = [*QUICK, HiveMq, Moquette, ActiveMq6, Artemis, RabbitMqtt, Ejabberd, Rumqttd, Rumqttd3]
LIMITED = [pytest.param(NatsMqtt, marks=pytest.mark.quick), Moquette, Rumqttd, Rumqttd3]
DENYING = [*QUICK[:2], HiveMq, ClosingHiveMq, Artemis, RabbitMqtt]


def linked(box, broker, version="auto"):
    """A pool with links that a witness needs: one that closes, one that lives. By default its version is not pinned."""
    mqtt = {"version": version}
    if broker.login:
        user, word = broker.login
        mqtt |= {"username": user, "password_file": secret(box.path / "word", word)}
    return pool([broker], mqtt=mqtt, links=2)


@pytest.mark.parametrize("kind", BROKERS)
def test_every_message_arrives_once_as_it_was(box, daemon, tmp_path, kind):
    broker = kind(box).start()
    d = daemon(linked(box, broker), ready=False)
    d.wait_ready(deadline_s=30)
    assert {link["speaks"] for link in d.links()} == {broker.speaks}
    consumer = battery.Mqtt(broker.port, 5 if broker.speaks == "MQTT 5" else 4, broker.login)
    battery.run(d, broker, consumer.received, tmp_path, headers=broker.speaks == "MQTT 5")


@pytest.mark.parametrize("kind", BROKERS)
def test_it_is_left_when_it_freezes_and_found_when_it_is_back(box, daemon, tmp_path, kind):
    broker = kind(box).start()
    d = daemon(linked(box, broker), ready=False)
    d.wait_ready(deadline_s=30)
    battery.freeze(d, broker, tmp_path)
    battery.restart(d, broker, tmp_path)


@pytest.mark.parametrize("kind", DENYING)
@pytest.mark.parametrize("version", [4, 5])
def test_a_denied_message_costs_its_own_lane_alone(box, daemon, kind, version):
    if version == 5 and kind.speaks != "MQTT 5":
        pytest.skip(f"{kind.__name__} speaks {kind.speaks}")
    broker = kind(box, deny="denied").start()
    d = daemon(linked(box, broker, version), ready=False)
    d.wait_ready(deadline_s=30)
    assert battery.neighbour_of_a_refused_one(d, box, Producer, "denied/1") == {"delivered": 2000}


@pytest.mark.parametrize("kind", LIMITED)
def test_a_message_over_the_brokers_limit_costs_its_own_lane_alone(box, daemon, tmp_path, kind):
    """These brokers announce no limit and close over it without a word."""
    broker = kind(box).start()
    d = daemon(linked(box, broker), ready=False)
    d.wait_ready(deadline_s=30)
    body = tmp_path / "large"
    body.write_bytes(b"x" * (broker.limit + 10000) + b"\n")
    assert battery.neighbour_of_a_refused_one(d, box, Producer, "large", body) == {"delivered": 2000}


def test_artemis_may_restart_under_load(box, daemon):
    broker = Artemis(box).start()
    d = daemon(linked(box, broker), ready=False)
    d.wait_ready(deadline_s=30)
    assert battery.restarts_under_load(d, broker, box, Producer) == {"delivered": 45000}
