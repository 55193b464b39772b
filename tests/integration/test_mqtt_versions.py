"""Brokers that speak MQTT 3.1.1 only are found out, spoken to in that, and the operator can see it."""

import pytest

from harness import Sink, pool, program, wait_for

AUTO = {"version": "auto"}


def speaks(daemon):
    return [link["speaks"] for link in daemon.links()]


def text(daemon, *words):
    """The text that tidegatectl prints."""
    return daemon.box.run(program("tidegatectl"), "-s", daemon.admin, *words).stdout


@pytest.mark.sanitizers
@pytest.mark.parametrize("how", ["refused", "refused-as-311", "closed", "unanswered"])
def test_a_broker_of_3_1_1_only_gets_what_it_speaks(daemon, box, how):
    sink = Sink(box, options=["--mqtt5", how]).start()
    d = daemon(pool([sink], mqtt=AUTO, health={"connect_timeout_ms": 500}))
    assert speaks(d) == ["MQTT 3.1.1"]
    assert "3.1.1" in text(d, "links")
    result = d.publish("-m", "good", topic="t")
    assert result.returncode == 0, result.stderr
    refused = d.publish("-H", "a=b", "-m", "headers", topic="t")
    assert refused.returncode != 0 and "65283" in refused.stderr and "the broker speaks no MQTT 5" in refused.stderr
    assert [row["body"] for row in sink.arrivals()] == ["good"]
    # One line of the log says it, once.
    said = [line for line in d.process.text().splitlines() if "from now on" in line]
    assert len(said) == 1 and "3.1.1" in said[0], said
    # It is known from then on: the next connection is of 3.1.1 at once.
    before = sink.stats()["connections_ever"]
    sink.tell("reset")
    wait_for(lambda: sink.stats()["connections"] == 1 and sink.stats()["connections_ever"] > before
             and speaks(d) == ["MQTT 3.1.1"], "the link to come back")
    assert sink.stats()["connections_ever"] == before + 1


@pytest.mark.parametrize("how", ["refused", "closed"])
def test_a_broker_that_was_upgraded_is_asked_for_5_again(daemon, box, how):
    sink = Sink(box, options=["--mqtt5", how]).start()
    d = daemon(pool([sink], mqtt=AUTO))
    assert speaks(d) == ["MQTT 3.1.1"]
    sink.stop()
    wait_for(lambda: "Connection refused" in d.process.text() or "connection refused" in d.process.text(),
             "the daemon to find it gone")
    newer = Sink(box, "newer", port=sink.port).start()
    wait_for(lambda: speaks(d) == ["MQTT 5"], "MQTT 5 to be spoken", 20)
    assert d.publish("-H", "a=b", "-m", "x", topic="t").returncode == 0
    assert [row["headers"] for row in newer.arrivals()] == ["a=b"]


def test_a_broker_of_5_that_fails_is_not_taken_for_one_of_3_1_1(daemon, box):
    sink = Sink(box).start()
    d = daemon(pool([sink], mqtt=AUTO, health={"connect_timeout_ms": 300}))
    assert speaks(d) == ["MQTT 5"]
    sink.tell("set", "mqtt5", "unanswered")
    sink.tell("reset")
    wait_for(lambda: d.process.text().count("no end of handshake") >= 2, "two attempts to fail", 20)
    sink.tell("set", "mqtt5", "taken")
    wait_for(lambda: speaks(d) == ["MQTT 5"], "the link to come back", 20)
    assert "3.1.1" not in d.process.text()


@pytest.mark.parametrize("version,how,words", [
    (5, "refused-as-311", "the broker does not speak MQTT 5: unacceptable protocol version (1); version = 4"),
    (5, "refused", "the broker does not speak MQTT 5: unsupported protocol version"),
])
def test_a_pinned_version_stays_and_says_what_to_set(daemon, box, version, how, words):
    sink = Sink(box, options=["--mqtt5", how]).start()
    d = daemon(pool([sink], mqtt={"version": version}), ready=False)
    wait_for(lambda: words in d.process.text(), "the reason in the log")
    why = text(d, "why", "events")
    assert words in why and "check the pool's settings" in why and "credentials" not in why, why


def test_what_the_broker_allows_is_no_matter_of_credentials(daemon, box):
    sink = Sink(box, options=["--maximum-qos", "0"]).start()
    d = daemon(pool([sink]), ready=False)
    wait_for(lambda: "allows QoS 0 only" in text(d, "why", "events"), "the reason")
    why = text(d, "why", "events")
    assert "qos = 1; check the pool's settings" in why and "credentials" not in why, why
