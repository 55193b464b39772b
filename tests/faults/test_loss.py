"""Story 8: packets are lost in both directions. At 10 % no broker is declared dead; at 30 % everything is slow
and correct."""

import pytest

from harness import FULL
from story import lasts, peers

LASTS_S = 60 if FULL else 5


def lose(story, brokers, percent):
    for broker in brokers:
        story.network.lose(broker.port, percent)


@pytest.mark.parametrize("peer, load", peers(["trickle", "saturated"], [("mosquitto-tls", "saturated")]))
def test_ten_percent_loss_kills_no_connection(story, peer, load):
    brokers = story.cast(peer)
    story.tidegated(brokers)
    lose(story, brokers, 10)
    story.load(load)
    lasts(LASTS_S, "packets to be lost")
    story.note(rate=round(story.delivered() / LASTS_S))
    story.network.nft("flush chain ip tidegate input")
    assert set(story.finish()) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    false = story.note_health()
    assert not false, f"false deaths: {false}"


@pytest.mark.parametrize("peer, load", [("sink", "trickle"), ("sink", "saturated"), ("mosquitto", "saturated")]
                         + [("mosquitto", "trickle")] * FULL)
def test_thirty_percent_loss_is_slow_and_correct(story, peer, load):
    brokers = story.cast(peer)
    story.tidegated(brokers, message_timeout_ms=300000)
    lose(story, brokers, 30)
    story.load(load)
    lasts(LASTS_S, "packets to be lost")
    story.note(rate=round(story.delivered() / LASTS_S))
    story.network.nft("flush chain ip tidegate input")
    outcomes = story.finish(300)
    story.note(**{key: value for key, value in outcomes.items() if key != "delivered"})
    assert set(outcomes) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    story.note_health()  # only reported: a limit of three seconds causes false deaths here
