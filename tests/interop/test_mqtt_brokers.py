"""MQTT brokers from the package registries. Skipped, in words, where fetch.py has not brought one."""

import pytest

import battery
from harness import pool
from load import Producer
from peers import Aedes, Amqtt, Artemis, Mochi, NatsMqtt

BROKERS = [pytest.param(Mochi, marks=pytest.mark.quick), pytest.param(Aedes, marks=pytest.mark.quick),
           pytest.param(Amqtt, marks=pytest.mark.quick), NatsMqtt, Artemis]


def auto(broker, **more):
    """A pool whose version is not pinned, with links that a witness needs: one that closes, one that lives."""
    return pool([broker], mqtt={"version": "auto"}, links=2, **more)


@pytest.mark.parametrize("kind", BROKERS)
def test_every_message_arrives_once_as_it_was(box, daemon, tmp_path, kind):
    broker = kind(box).start()
    d = daemon(auto(broker), ready=False)
    d.wait_ready(deadline_s=30)
    assert {link["speaks"] for link in d.links()} == {broker.speaks}
    consumer = battery.Mqtt(broker.port, 5 if broker.speaks == "MQTT 5" else 4)
    battery.run(d, broker, consumer.received, tmp_path, headers=broker.speaks == "MQTT 5")


@pytest.mark.parametrize("kind", BROKERS)
def test_it_is_left_when_it_freezes_and_found_when_it_is_back(box, daemon, tmp_path, kind):
    broker = kind(box).start()
    d = daemon(auto(broker), ready=False)
    d.wait_ready(deadline_s=30)
    battery.freeze(d, broker, tmp_path)
    battery.restart(d, broker, tmp_path)


@pytest.mark.parametrize("kind", [pytest.param(Mochi, marks=pytest.mark.quick), pytest.param(Aedes, marks=pytest.mark.quick), Artemis])
@pytest.mark.parametrize("version", [4, 5])
def test_a_denied_message_costs_its_own_lane_alone(box, daemon, kind, version):
    if version == 5 and kind.speaks != "MQTT 5":
        pytest.skip(f"{kind.__name__} speaks {kind.speaks}")
    broker = kind(box, deny="denied").start()
    d = daemon(pool([broker], mqtt={"version": version}, links=2), ready=False)
    d.wait_ready(deadline_s=30)
    assert battery.neighbour_of_a_denied_one(d, box, Producer, "denied/1") == {"delivered": 2000}
