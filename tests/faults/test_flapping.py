"""Story 6: a broker that is up for 2 s and down for 2 s, again and again. The breaker damps it, and no
producer notices while another broker is up."""

import pytest

from harness import FULL
from story import lasts

UP_S = DOWN_S = 2.0
TIMES = 15 if FULL else 2
RETRY_MS, RETRY_MAX_MS = 500, 10000


def attempts_of(story, broker):
    """(when an attempt was over, how many failures in a row came before it), in order."""
    return [(change["at"], int(change["failures"]))
            for change in story.changes(broker) if change["to"] in ("ready", "failed") and change["from"] not in
            ("suspect", "ready", "draining") or change["to"] == "failed"]


def check_back_off(story, broker):
    """No attempt begins sooner after a failure than the shortest jittered pause that the failures in a
    row allow. Attempts here are refused or answered at once, so the end of one is its beginning."""
    soonest = None
    attempts = attempts_of(story, broker)
    for (at, before), (next_at, failures) in zip(attempts, attempts[1:]):
        if failures != before + 1:
            continue  # `at` was no failure: the next is the loss of that connection
        least = min(RETRY_MS * 2 ** (failures - 1), RETRY_MAX_MS) / 2000
        soonest = min(soonest or 99.0, (next_at - at) / least)
        assert next_at - at >= least * 0.97, f"{next_at - at:.3f} s after failure {failures}, at least {least} s"
    return soonest


@pytest.mark.parametrize("peer, how", [("sink", "restarted"), ("mosquitto", "restarted")]
                         + [("sink", "refusing")] * FULL)
def test_flapping_peer_is_damped_and_harms_no_message(story, peer, how):
    flapper, steady = story.cast(peer, memory=peer == "mosquitto")
    daemon = story.tidegated([flapper, steady])
    story.produce(6, rate=200, low=100)
    story.wait_delivered_by(flapper, steady, more=20)
    for _ in range(TIMES):
        if how == "restarted":
            flapper.down()
        else:
            flapper.tell("set", "refuse", "on")
            flapper.tell("reset")
        lasts(DOWN_S, "down")
        if how == "restarted":
            flapper.up()
        else:
            flapper.tell("listen")
        lasts(UP_S, "up")
    story.wait_delivered_by(steady, more=20)
    outcomes = story.finish()
    assert set(outcomes) == {"delivered"}, f"producers saw {outcomes}"
    story.check_arrivals()
    story.note_waits()
    false = [change for change in story.note_health() if change["broker"] != flapper.address]
    row = [row for row in daemon.rows("brokers") if row["address"] == flapper.address][0]
    story.note(flaps=TIMES, connects=row["attempts"], false_deaths=len(false),
               soonest_by_least_pause=check_back_off(story, flapper))
    assert not false
    # Without memory of its failures: two attempts and more in each second of being down.
    assert row["attempts"] <= 4 + TIMES * 2
    assert story.figures["worst_wait_s"] < story.within(1.5)
