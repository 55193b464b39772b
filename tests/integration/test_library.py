"""The library's calls, one by one, against a running daemon."""

import ctypes
import os
import select

import pytest

import tidegate_lib as tide
from harness import Process, SANITIZED, Sink, pool, program, wait_for

pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")


@pytest.fixture
def lane(daemon, sink):
    client = tide.Client(daemon(pool([sink])).socket)
    yield client.lane()
    client.close()


@pytest.fixture
def held(box, daemon):
    """A lane whose broker is not up."""
    sink = Sink(box)
    client = tide.Client(daemon(pool([sink], breaker={"retry_ms": 100, "retry_max_ms": 200}), ready=False).socket)
    lane = client.lane(ring_bytes=16384)
    lane.sink = sink
    yield lane
    client.close()


class error:
    """This call must fail, and so."""

    def __init__(self, code):
        self.code = code

    def __enter__(self):
        return self

    def __exit__(self, kind, value, _trace):
        assert kind is tide.TideError, f"no error, {self.code} was due"
        assert value.code == self.code, f"{value.code} instead of {self.code}: {value}"
        return True


def test_completion_names_its_message(lane):
    position = lane.publish(b"one", tag=77)
    completion = lane.collect(1)[0]
    assert (completion.position, completion.tag, completion.name) == (position, 77, "delivered")
    assert completion.attempts == 1 and completion.elapsed_us < 5_000_000
    assert lane.outstanding() == 0 and lane.poll() == []


def test_publish_sync_leaves_other_completions_to_poll(lane):
    first = lane.publish(b"first", tag=1)
    assert lane.publish_sync(b"second", tag=2).tag == 2
    assert [completion.position for completion in lane.collect(1)] == [first]


def test_quiet_message_has_no_completion_when_delivered(lane):
    for _ in range(10):
        lane.publish(b"quiet", flags=tide.QUIET)
    lane.publish(b"loud", tag=5)
    lane.flush()
    assert [completion.tag for completion in lane.collect(1)] == [5]
    assert lane.poll() == [] and lane.outstanding() == 0


def test_quiet_message_that_fails_is_told(held):
    held.publish(b"quiet", flags=tide.QUIET, timeout_ms=100)
    assert held.collect(1)[0].name == "expired"


def test_reserved_body_is_written_in_place(lane, sink):
    at = lane.reserve(100, topic=b"placed")
    with error(tide.EBUSY):
        lane.publish(b"meanwhile")
    ctypes.memmove(at, b"in place", 8)
    lane.commit(8)
    assert lane.collect(1)[0].name == "delivered"
    assert [arrival["body"] for arrival in sink.arrivals()] == ["in place"]


def test_aborted_reservation_leaves_no_trace(lane, sink):
    lane.reserve(1000)
    lane.abort()
    assert lane.publish_sync(b"after").name == "delivered"
    assert [arrival["body"] for arrival in sink.arrivals()] == ["after"]


def test_full_ring_says_again_until_there_is_room(held):
    count = 0
    with error(tide.EAGAIN):
        while True:
            held.publish(b"x" * 1000)
            count += 1
    assert 8 <= count <= 16
    assert held.writable() == 0
    held.sink.start()
    assert {completion.name for completion in held.collect(count)} == {"delivered"}
    assert held.writable() == 1
    held.publish(b"room again")


def test_cancelled_in_time_is_cancelled_and_never_sent(held):
    keep = held.publish(b"keep")
    drop = held.publish(b"drop")
    held.cancel(drop)
    held.sink.start()
    outcomes = {completion.position: completion.name for completion in held.collect(2)}
    assert outcomes == {keep: "delivered", drop: "cancelled"}
    assert [arrival["body"] for arrival in held.sink.arrivals()] == ["keep"]
    with error(tide.ENOTFOUND):
        held.cancel(drop + 123456)


def test_message_that_can_never_fit_is_refused(lane):
    with error(tide.ETOOBIG):
        lane.publish(b"x" * (1 << 20))
    assert lane.publish_sync(b"small").name == "delivered"


def test_wrong_arguments_are_refused(lane):
    too_long = lane.message(topic=b"x" * 70000)
    assert lane.lib.tg_publish(lane.handle, ctypes.byref(too_long), None) in (-tide.EINVAL, -tide.ETOOBIG)
    assert lane.lib.tg_publish(lane.handle, None, None) == -tide.EINVAL
    assert lane.outstanding() == 0
    assert lane.publish_sync(b"fine").name == "delivered"


def test_wait_without_news_times_out(lane):
    with error(tide.ETIMEOUT):
        lane.wait(20)


def test_descriptor_wakes_a_sleeping_event_loop(lane):
    poller = select.poll()
    poller.register(lane.fd(), select.POLLIN)
    while lane.poll():
        pass
    for number in range(50):
        lane.publish(b"x", tag=number)
        got = []
        while not got:
            assert poller.poll(10000), "the descriptor stayed silent"
            while more := lane.poll():
                got += more
        assert [completion.tag for completion in got] == [number]


def test_descriptor_wakes_when_the_pool_takes_messages_again(held):
    poller = select.poll()
    poller.register(held.fd(), select.POLLIN)
    assert held.poll() == [] and held.writable() == 0
    held.sink.start()

    def woken():
        poller.poll(1000)
        held.poll()
        return held.writable() == 1
    wait_for(woken, "writable")


def test_child_of_a_fork_may_not_use_the_parents_lane(lane):
    lane.publish_sync(b"before")
    child = os.fork()
    if child == 0:
        codes = [lane.lib.tg_publish(lane.handle, ctypes.byref(lane.message(b"child")), None),
                 lane.lib.tg_poll(lane.handle, (tide.Completion * 1)(), 1), lane.lib.tg_wait(lane.handle, 0),
                 lane.lib.tg_flush(lane.handle, 0), lane.lib.tg_fd(lane.handle), lane.lib.tg_writable(lane.handle)]
        os._exit(0 if all(code == -tide.EFORKED for code in codes) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lane.publish_sync(b"after").name == "delivered"


def test_closing_with_messages_under_way_still_delivers_them(held, box):
    for number in range(5):
        held.publish(b"%d" % number)
    with error(tide.ETIMEOUT):
        held.close(50)
    held.sink.start()
    wait_for(lambda: len(held.sink.arrivals()) == 5, "the closed lane's messages")


def test_daemons_end_is_told_and_not_crashed_on(box, daemon, sink):
    d = daemon(pool([sink]))
    lane = tide.Client(d.socket).lane()
    lane.publish_sync(b"x")
    d.process.kill()

    lane.publish(b"y")
    with error(tide.ETIMEOUT):
        lane.flush(200)
    d.start()
    lane.flush(20000)
    assert [c.name for c in lane.poll()] == ["delivered"]


def test_rejection_has_the_brokers_reason(box, daemon):
    sink = Sink(box, options=["--reject", "0x97", "--reason", "the cup is full"]).start()
    lane = tide.Client(daemon(pool([sink])).socket).lane()
    completion = lane.publish_sync(b"x")
    assert (completion.name, completion.code) == ("rejected", 0x97)
    assert lane.reason() == ("quota exceeded: the cup is full", 0x97)


def test_program_without_standard_descriptors_gets_none(box, daemon, sink):
    """Its output would go into one, and what is in one would be its input."""
    d = daemon(pool([sink]))
    record = box.path / "record"
    process = Process(box, "producer", ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", program("producer"), "-s", d.socket,
                                        "-p", "events", "-o", record, "-n", "10", "-l", "2", "-L"])
    wait_for(lambda: d.rows("pools")[0]["delivered"] == 20, "its messages to be delivered")
    taken = {int(name) for name in os.listdir(f"/proc/{process.pid}/fd")}
    assert len(taken) >= 6 and not taken & {0, 1, 2}, taken


def test_lane_says_what_it_is_and_whether_its_daemon_is_there(box, daemon, sink):
    d = daemon(pool([sink], message_timeout_ms=12345))
    client = tide.Client(d.socket)
    lane = client.lane(ring_bytes=20000)
    info = lane.info()
    assert (info.ring_bytes, info.record_bytes, info.completions, info.timeout_ms) == (32768, 16384, 256, 12345)
    assert info.lane_id == d.rows("lanes")[0]["id"] and info.away_ms == 0
    d.process.kill()
    wait_for(lambda: lane.info().away_ms > 100, "it to be noticed")
    d.config.write_text(d.config.read_text().replace("12345", "54321"))
    d.start()
    wait_for(lambda: lane.info().away_ms == 0, "the next daemon")
    assert lane.info().timeout_ms == 54321
    assert lane.publish_sync(b"x").name == "delivered"
    client.close()
