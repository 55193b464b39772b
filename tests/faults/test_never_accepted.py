"""Story 3: the kernel completes the connection, the broker never takes it."""

from harness import FULL, wait_for
from story import lasts


def test_connected_but_never_accepted_is_never_ready(story, peer):
    good = story.broker(peer, "good").up()
    if peer == "sink":
        deaf = story.broker(peer, "deaf", options=["--never-accept"]).up()
    else:
        deaf = story.broker(peer, "deaf").up()
        deaf.freeze()  # its kernel goes on accepting into the queue
    daemon = story.tidegated([good, deaf], ready=False)
    daemon.wait_ready(good)
    story.produce(4, rate=50)
    story.produce(2, rate=500)
    wait_for(lambda: [row for row in daemon.rows("brokers") if row["address"] == deaf.address][0]["attempts"] >= 3,
             "three attempts at the deaf broker", 30)
    lasts(60 if FULL else 1, "traffic beside it")
    assert set(story.finish()) == {"delivered"}
    story.note_waits()
    ready = [change for change in story.changes(deaf) if change["to"] == "ready"]
    story.note(times_ready=len(ready), elsewhere_s=story.figures["worst_wait_s"])
    assert not ready
    assert story.figures["worst_wait_s"] < story.within(1.0), "no message waits for it"
    if peer == "mosquitto":
        deaf.thaw()
    else:
        assert deaf.connects() == 0 and not deaf.numbers()
    story.check_arrivals()
    assert not story.note_health()
