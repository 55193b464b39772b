"""Story 7: all brokers are down, then all are back. Messages accepted in between are delivered without
intervention, and soon at the full rate."""

import time

import pytest

from harness import FULL, wait_for
from story import lasts

DOWN_S = 30 if FULL else 4
WITHIN_S = 5.0


class Rate:
    """Completions a second over the last second or so, sampled while waiting."""

    def __init__(self, story):
        self.story = story
        self.samples = []

    def look(self):
        self.samples.append((time.monotonic(), self.story.delivered()))
        while self.samples[-1][0] - self.samples[0][0] > 1.2:
            self.samples.pop(0)

    def __call__(self):
        (t0, n0), (t1, n1) = self.samples[0], self.samples[-1]
        return (n1 - n0) / (t1 - t0) if t1 - t0 > 0.8 else 0.0


@pytest.mark.parametrize("peer", ["sink", "mosquitto", "mosquitto-tls"] + ["sink-tls"] * FULL)
def test_cluster_restart_delivers_everything(story, peer):
    brokers = story.cast(peer, memory="mosquitto" in peer, **({"options": ["--ack-delay", "100"]} if "sink" in peer else {}))
    daemon = story.tidegated(brokers, message_timeout_ms=300000)
    # sink: the windows are full all the time, 1000 messages in 0.1 s each; mosquitto: as it may.
    story.produce(4, batch=8, rate=0 if "sink" in peer else 2000)
    story.wait_delivered_by(*brokers, more=100)
    rate = Rate(story)
    lasts(3, "the rate before to be known", rate.look)
    before = rate()
    began = time.time()
    for broker in brokers:
        broker.down()
    for broker in brokers:
        daemon.wait_not_ready(broker)
    watch = story.watch(began)
    lasts(max(0.1, DOWN_S - (time.time() - began)), "all brokers to be down")
    in_rings = story.accepted() - story.delivered()
    for broker in brokers:
        broker.up()
    back = time.time()
    again = Rate(story)
    wait_for(lambda: (again.look(), again() >= 0.8 * before)[1],
             lambda: f"the rate of before, {before:.0f}/s, it is {again():.0f}/s", 20, 0.02)
    full_after = time.time() - back
    story.note(resolved_s=watch.wait_resolved(), rate_before=round(before), full_rate_after_s=full_after,
               held_in_rings=in_rings, down_s=back - began)
    for broker in brokers:
        daemon.wait_ready(broker, 20)
    assert set(story.finish()) == {"delivered"}
    story.check_arrivals()
    story.note_waits()
    false = story.note_health(brokers, began, back + 5)
    assert not false
    assert full_after <= story.within(WITHIN_S)
