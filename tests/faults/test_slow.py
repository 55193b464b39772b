"""Story 5: a broker that is slow or stands still while its TCP answers. It is not dead: it keeps its
connection and what it holds, for as long as stall_timeout_ms says, and the others carry the load.

MQTT cannot express "blocked", so stall_timeout_ms is longer than the fault here;
test_stalled_peer_is_given_up_after_stall_timeout has the default."""

import time

import pytest

from harness import FULL, wait_for
from story import lasts

LASTS_S = 60 if FULL else 5
BODY = 1000
PATIENT = {"health": {"stall_timeout_ms": 120000}, "message_timeout_ms": 300000}
LIMIT_S = 3.0

SLOW = {
    "zero_window": lambda broker: broker.tell("set", "stall", "on"),
    "reads_a_little": lambda broker: broker.tell("set", "read-rate", str(BODY + 100)),
    "answers_nothing": lambda broker: broker.tell("set", "freeze", "on"),
    "stopped": lambda broker: broker.freeze(),
}


def slow_down(broker, how):
    SLOW[how](broker)


def recover(broker, how):
    if how == "stopped":
        broker.thaw()
    elif how == "reads_a_little":
        broker.tell("set", "read-rate", "0")
    else:
        broker.tell("resume")


@pytest.mark.parametrize("peer, how", [("sink", "zero_window"), ("sink", "reads_a_little"), ("sink", "stopped"),
                                       ("mosquitto", "stopped")])
def test_slow_peer_is_not_dead_and_others_carry_the_load(story, peer, how):
    """mosquitto cannot be told to read slowly."""
    narrow = {"options": ["--receive-buffer", "65536"]} if how == "zero_window" else {}
    victim, other = story.broker(peer, "a", **narrow).up(), story.broker(peer, "b").up()
    daemon = story.tidegated([victim, other], **PATIENT)
    story.produce(6, rate=200, low=BODY)
    story.wait_delivered_by(victim, other, more=50)
    slow_down(victim, how)
    began = time.time()
    watch = story.watch(time.time())
    story.note(elsewhere_s=watch.wait_elsewhere())
    lasts(max(0.1, LASTS_S - (time.time() - began)), "the slowness", watch.look)
    recovered = time.time()
    recover(victim, how)
    story.note(resolved_s=watch.wait_resolved())
    daemon.wait_ready(victim, 20)
    story.note(back_s=time.time() - recovered)
    story.wait_delivered_by(other, more=50)
    assert set(story.finish()) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    left = story.left_at(victim, began)
    story.note(left_s=left - began if left is not None else None)
    # A broker that was stopped for longer than its clients' keep-alive closes their sessions when it resumes,
    # because it has not seen time pass. Until then the daemon must not have given it up.
    closed = [death for death in story.note_health() if how == "stopped" and death["at"] > recovered - 0.01]
    story.note(false_deaths=story.figures["false_deaths"] - len(closed), closed_by_broker=len(closed))
    assert all("closed by the broker" in death["cause"] or "reset" in death["cause"] for death in closed)
    assert story.figures["false_deaths"] == 0, "it was killed"
    assert story.figures["connects"] == 2 + len(closed), "there was a reconnect"
    assert story.figures["elsewhere_s"] <= story.within(LIMIT_S)


def test_stalled_peer_is_given_up_after_stall_timeout(story, peer):
    """The defaults: left within the detection time, given up 10 s later, with nothing lost."""
    victim, other = story.cast(peer)
    daemon = story.tidegated([victim, other], **({} if FULL else {"health": {"stall_timeout_ms": 4000}}))
    story.produce(6, rate=300, low=200)
    story.wait_delivered_by(victim, other, more=50)
    victim.freeze()
    began = time.time()
    watch = story.watch(time.time())
    story.note(elsewhere_s=watch.wait_elsewhere(), resolved_s=watch.wait_resolved())
    wait_for(lambda: story.deaths(victim, began), "the stalled link to be given up", 20, 0.05)
    left, died = story.left_at(victim, began) - began, story.deaths(victim, began)[0]["at"] - began
    victim.thaw()
    daemon.wait_ready(victim, 20)
    assert set(story.finish()) == {"delivered"}
    story.note(left_s=left, given_up_s=died)
    story.check_arrivals()
    story.note_waits()
    false = story.note_health([victim], began)
    assert not false
    assert left <= story.within(LIMIT_S) and story.figures["elsewhere_s"] <= story.within(LIMIT_S)
    assert left + (9.5 if FULL else 3.5) <= died <= left + (11 if FULL else 5)
