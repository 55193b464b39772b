"""STOMP brokers from the package registries: Artemis answers each frame behind a bad one with an ERROR of its own."""

import pytest

from harness import pool, secret
from load import Producer
from peers import Artemis


def test_what_lies_behind_a_denied_message_is_not_rejected(box, daemon):
    """Each frame behind a denied one is answered "Connection is not valid"; none of those is refused for good."""
    broker = Artemis(box, deny="denied", protocol="stomp").start()
    entry = pool([broker], protocol="stomp", links=2, stomp={"login": "u", "passcode_file": secret(box.path / "pw", "secret")})
    del entry["mqtt"]
    d = daemon(entry, ready=False)
    d.wait_ready(deadline_s=30)
    beside = Producer(box, d, count=8000, rate=2000)
    beside.wait_accepted(200)
    for _ in range(6):
        result = d.publish("--timeout", "20000", "-m", "x", topic="denied.1", deadline_s=40)
        assert result.returncode == 1 and "rejected, code 65285" in result.stderr and "AMQ229032" in result.stderr, result.stderr
    assert beside.finish() == {"delivered": 8000}
