"""Story 1: a peer that vanishes without FIN or RST. All health settings are the defaults."""

import time

import pytest

from harness import FULL, wait_for
from story import lasts, peers

LIMIT_S = 3.0


@pytest.mark.parametrize("peer, load", peers(["idle", "trickle", "saturated"], [("mosquitto-tls", "saturated")]))
def test_vanished_peer_is_left_within_three_seconds(story, peer, load):
    victim, other = story.cast(peer, **({"options": ["--ack-delay", "30"]} if "sink" in peer else {}))
    daemon = story.tidegated([victim, other])
    story.load(load)
    if load != "idle":
        story.wait_delivered_by(victim, other, more=2)
    story.network.cut(victim.port)
    cut = time.time()
    watch = story.watch(cut)
    wait_for(lambda: (watch.look(), story.left_at(victim, cut))[1], "the vanished broker to be left", 8, 0.02)
    watch.left()
    left = story.left_at(victim, cut) - cut
    story.note(left_s=left, in_flight=watch.count)
    if load == "idle":
        story.produce(4, rate=20)
        story.wait_delivered_by(other, more=20)
        story.note(elsewhere_s=left)
    else:
        elsewhere = watch.wait_moved() if load == "saturated" else watch.wait_elsewhere()
        story.note(elsewhere_s=max(left, elsewhere), resolved_s=watch.wait_resolved())
    story.wait_delivered_by(other, more=4)
    wait_for(lambda: story.deaths(victim, cut), "the vanished broker's link to be given up", 20, 0.05)
    story.note(given_up_s=story.deaths(victim, cut)[0]["at"] - cut)
    if FULL:
        lasts(20, "the outage")
    healed = time.time()
    story.network.heal(victim.port)
    daemon.wait_ready(victim, 20)
    story.note(back_s=time.time() - healed)
    outcomes = story.finish()
    assert set(outcomes) == {"delivered"}, f"a producer saw {outcomes}"
    story.check_arrivals()
    story.note_waits()
    false = story.note_health([victim], cut, healed + 5)
    if load == "idle":
        assert story.figures["worst_wait_s"] <= story.within(1.0), "a message waited for a broker left while idle"
    elif load == "trickle":
        assert story.figures["worst_wait_s"] <= story.within(LIMIT_S)
    assert story.figures["elsewhere_s"] <= story.within(LIMIT_S)
    assert left <= story.within(LIMIT_S)
    assert not false


@pytest.mark.parametrize("load", ["saturated"])
def test_vanished_only_peer_costs_time_and_nothing_else(story, peer, load):
    """One broker and nowhere to go: everything waits in the rings and is delivered when it is back."""
    (only,) = story.cast(peer, 1, **({"options": ["--ack-delay", "30"]} if "sink" in peer else {}))
    daemon = story.tidegated([only], message_timeout_ms=300000)
    story.load(load)
    story.wait_delivered_by(only, more=100)
    story.network.cut(only.port)
    cut = time.time()
    watch = story.watch(cut)
    lasts(60 if FULL else 6, "the outage")
    healed = time.time()
    story.network.heal(only.port)
    resolved = watch.wait_resolved()
    story.note(left_s=story.left_at(only, cut) - cut, resolved_s=resolved, back_s=resolved - (healed - cut))
    daemon.wait_ready(only)
    story.wait_delivered_by(only, more=1000)
    assert set(story.finish()) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    false = story.note_health([only], cut, healed + 5)
    assert not false
    assert story.figures["eagain"] > 0
    assert story.figures["back_s"] <= 5.0
