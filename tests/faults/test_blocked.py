"""Story 5 with a broker that reports its state: RabbitMQ's memory alarm. It reports itself blocked, stops reading and
continues its heartbeats. Its link stays, unwritable, until it unblocks, and the other broker carries the load."""

import time

import harness_amqp
import pytest

from harness import FULL, wait_for
from story import AlarmedBroker, lasts

LASTS_S = 60 if FULL else 4
LIMIT_S = 3.0


@pytest.mark.skipif(not harness_amqp.available(), reason="rabbitmq-server is not installed")
def test_blocked_peer_that_says_so_is_kept_and_the_other_carries_the_load(story):
    """All health settings are the defaults: stall_timeout_ms is 10 s, and a peer that speaks is not stalled."""
    blocked, other = story.broker("rabbit", "a").up(), story.broker("sink", "b", protocol="amqp").up()
    daemon = story.tidegated([blocked, other], protocol="amqp", message_timeout_ms=300000, amqp={})
    story.produce(6, rate=200, topic=AlarmedBroker.QUEUE)
    story.wait_delivered_by(blocked, other, more=50)
    began = time.time()
    blocked.alarm(True)
    wait_for(lambda: story.left_at(blocked, began), "the alarm to be heard", 10, 0.02)
    said = story.left_at(blocked, began)
    watch = story.watch(said)
    story.note(elsewhere_s=watch.wait_elsewhere())

    def is_kept():
        link = daemon.links(blocked)[0]
        assert link["state"].lower() == "suspect" and link["blocked"], f"the blocked link: {link}"

    lasts(max(0.1, LASTS_S - (time.time() - said)), "the alarm", lambda: (is_kept(), watch.look()))
    cleared = time.time()
    blocked.alarm(False)
    daemon.wait_ready(blocked, 20)
    story.note(blocked_s=cleared - said, back_s=time.time() - cleared, resolved_s=watch.wait_resolved())
    story.wait_delivered_by(blocked, other, more=50)
    assert set(story.finish()) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    false = story.note_health()
    assert not false
    assert story.figures["connects"] == 2, "there was a reconnect"
    assert story.figures["elsewhere_s"] <= story.within(LIMIT_S)
    assert story.figures["worst_wait_s"] <= story.within(LIMIT_S)
