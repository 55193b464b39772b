"""Story 2: 1 KiB messages, a million of them offered, while the peer is half open and the daemon may
have no more than 128 MB. Memory is the rings and the watermarks, whatever is offered."""

import time

import pytest

from harness import FULL, wait_for
from story import lasts

CAP = 128 << 20
OFFERED = 1000000
RING = 1 << 20


def memory_is_flat(story, before):
    story.note_memory()
    grown = story.figures["daemon_peak_kib"] - before
    story.note(grown_kib=grown)
    assert story.figures["daemon_peak_kib"] < CAP // 1024
    # Four rings of 1 MiB, of which the daemon has mapped what it read, and one high watermark of 1 MiB.
    assert grown < 24 * 1024, f"the daemon grew by {grown} KiB"


@pytest.mark.parametrize("peer, fate", [("sink", "back"), ("sink", "expired"), ("mosquitto", "back"), ("sink-tls", "back")]
                         + [("mosquitto", "expired"), ("mosquitto-tls", "back"), ("sink-tls", "expired")] * FULL)
def test_half_open_peer_and_a_million_offers(story, peer, fate):
    """Programs that drop refused messages: each of the million offers is answered at once."""
    (only,) = story.cast(peer, 1)
    daemon = story.tidegated([only], cap_bytes=CAP, message_timeout_ms=120000 if fate == "back" else 3000)
    story.produce(1, rate=50, most=100, ring=RING)  # a first few over the link before it is cut
    story.wait_delivered_by(only, more=10)
    before = int(daemon.process._status("VmHWM"))
    story.network.cut(only.port)
    cut = time.time()
    flood = story.produce(4, low=1024, batch=1, ring=RING, words=["-O", OFFERED // 4])
    wait_for(lambda: sum(load.file.accepted() + load.file.again for load in flood) >= OFFERED, "a million offers", 30)
    lasts(max(0.1, (30 if FULL else 4) - (time.time() - cut)), "the outage")
    offered = sum(load.file.accepted() + load.file.again for load in flood)
    accepted = sum(load.file.accepted() for load in flood)
    story.note(offered=offered, accepted=accepted)
    assert offered >= OFFERED
    expired = sum(load.file.completed() for load in flood)
    assert accepted - expired <= 4 * RING // 1024, "no more than the rings hold"
    memory_is_flat(story, before)
    healed = time.time()
    story.network.heal(only.port)
    outcomes = story.finish()
    story.note(resolved_s=time.time() - cut, **{key: value for key, value in outcomes.items() if key != "delivered"})
    if fate == "back":
        assert set(outcomes) == {"delivered"}
    else:
        # Messages that the kernel never got are EXPIRED, messages that may have arrived UNKNOWN.
        assert set(outcomes) <= {"delivered", "expired", "unknown"} and outcomes["expired"] > 0
    story.check_arrivals()
    story.note_waits()
    if fate == "expired":
        arrived = set(only.numbers())
        lied = [one for load in flood for one in range(load.file.accepted(0))
                if load.file.outcome(0, one) == "expired" and (load.number, 0, one) in arrived]
        assert not lied, f"{len(lied)} messages were EXPIRED, certainly never sent, and arrived"
    memory_is_flat(story, before)
    assert not story.note_health([only], cut, healed + 5)


def test_half_open_in_the_middle_of_a_million(story, peer):
    """Programs that wait for room: everything is delivered in the end. (The short form sends fewer.)"""
    (only,) = story.cast(peer, 1)
    count = (250000 if peer == "mosquitto" else 100000) if FULL else 10000
    daemon = story.tidegated([only], cap_bytes=CAP, message_timeout_ms=600000)
    story.produce(4, low=1024, batch=8, ring=RING, most=count)
    story.wait_delivered_by(only, more=2000)
    before = int(daemon.process._status("VmHWM"))
    story.network.cut(only.port)
    cut = time.time()
    lasts(20 if FULL else 4, "the outage")
    healed = time.time()
    story.network.heal(only.port)
    for load in story.loads:
        assert load.end(600) == {"delivered": count}
    story.note(offered=count * 4, resolved_s=time.time() - cut)
    story.check_arrivals()
    story.note_waits()
    memory_is_flat(story, before)
    assert story.figures["eagain"] > 0
    assert not story.note_health([only], cut, healed + 5)
