"""Hostile clients that corrupt shared memory, also under the daemon built with ASan. The daemon keeps running, and the
other lanes work.

200,000 mutations of each kind, or 12 million in all with TG_FULL=1 (tools/check --faults)."""

import pytest

from harness import FULL, Process, Sink, pool, program, wait_for
from load import Producer, check_all_arrived

KINDS = ("bytes", "words", "records", "holes", "flood", "mix", "return")
MUTATIONS = 2_000_000 if FULL else 200_000


def hostile(box, d, kind, seed, mutations=MUTATIONS):
    return Process(box, f"hostile-{kind}-{seed}", [program("hostile"), d.socket, "events", str(seed), str(mutations), kind])


@pytest.mark.sanitizers
@pytest.mark.parametrize("kind", KINDS)
def test_lying_client_hurts_only_its_own_lanes(box, daemon, kind):
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    witness = Producer(box, d, number=1, count=20000, batch=8, rate=4000, low=10, high=6000)
    witness.wait_accepted(1)
    descriptors = d.process.descriptors()
    liars = [hostile(box, d, kind, seed) for seed in (1, 2)]
    for liar in liars:
        assert liar.wait(600) == 0, liar.text()
        assert f"mutations={MUTATIONS}" in liar.text()
    assert d.process.alive(), d.process.text()
    assert witness.finish() == {"delivered": 20000}
    check_all_arrived([witness], sink)
    d.wait_no_lanes(60)
    wait_for(lambda: d.process.descriptors() <= descriptors, lambda: f"{descriptors} descriptors, {d.process.descriptors()}")
    assert d.stop() == 0


@pytest.mark.parametrize("spin_us", (0, 50))
@pytest.mark.sanitizers
def test_late_rings_of_many_threads_are_not_for_nothing(box, daemon, spin_us):
    d = daemon(pool([Sink(box, record=False).start()]), idle={"spin_us": spin_us})
    result = box.run(program("honest"), d.socket, "events", 500, 16, deadline_s=60)
    assert result.returncode == 0, result.stderr
    assert d.rows("stats")["doorbells"] > 100
    assert d.rows("stats")["clients_unheard"] == 0
    assert d.stop() == 0


@pytest.mark.sanitizers
def test_client_that_rings_for_nothing_is_heard_a_little_later(box, daemon):
    d = daemon(pool([Sink(box, record=False).start()]))
    nag = Process(box, "nag", [program("greedy"), d.socket, "events", "nag"])
    try:
        wait_for(lambda: d.rows("stats")["clients_unheard"] > 0, nag.text)
        delivered = d.rows("stats")["pools"]["events"]["delivered"]
        wait_for(lambda: d.rows("stats")["pools"]["events"]["delivered"] >= delivered + 20, nag.text)
    finally:
        nag.kill()
    d.wait_no_lanes(60)
    assert d.stop() == 0
