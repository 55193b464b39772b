"""The Redis driver against a real redis-server: delivery, and the exact completion of refused messages."""

import os
import re
import socket
import threading

import pytest

from harness import FULL, Sink, have, pool, said, secret, wait_for
from harness_redis import Connection, Redis, StreamArrivals, Subscriber
from load import Producer, check_all_arrived
from test_upgrade import Upgraded
from tidegate_lib import Client

pytestmark = pytest.mark.skipif(not have("redis-server"), reason="redis-server is not installed")

FAST = {
    "health": {"connect_timeout_ms": 500, "probe_timeout_ms": 300, "idle_ms": 300, "probe_misses": 2,
               "ack_timeout_ms": 1000, "stall_timeout_ms": 2000},
    "breaker": {"retry_ms": 100, "retry_max_ms": 500, "slow_start_ms": 500},
}
PROCESSES = 8
COUNT = 50000 if FULL else 3000
RATE = 0 if FULL else 1500  # a second and process: time enough for faults


@pytest.fixture
def redis(box):
    return Redis(box).start()


def streams(brokers, **changes):
    entry = pool(brokers, protocol="redis", **{"redis": {}, **changes})
    del entry["mqtt"]
    return entry


def channels(brokers, **changes):
    return streams(brokers, redis={"mode": "publish"}, **changes)


@pytest.mark.sanitizers
def test_entry_has_headers_key_and_body(daemon, redis):
    d = daemon(streams([redis]))
    result = d.publish("-k", "key 1", "-H", "trace=id 7", "-H", "colour=gr\u00fcn", "-m", "hello", topic="orders new")
    assert result.returncode == 0 and said(result) == {"accepted": 1, "delivered": 1}, result.stderr
    (identity, fields), = redis.entries("orders new")
    assert list(fields.items()) == [(b"trace", b"id 7"), (b"colour", "gr\u00fcn".encode()), (b"key", b"key 1"), (b"body", b"hello")]
    assert re.fullmatch(r"\d+-0", identity)


def test_settings_shape_the_entry(daemon, redis):
    d = daemon(streams([redis], redis={"body_field": "payload", "key_field": "", "database": 5, "maxlen": 100}))
    producer = Producer(d.box, d, count=3000, batch=32)
    assert producer.finish() == {"delivered": 3000}
    assert d.publish("-k", "k", "-m", "last", topic="load/1/0").returncode == 0
    connection = Connection(redis.port)
    assert connection("SELECT", 5) == "OK"
    assert 100 <= connection("XLEN", "load/1/0") < 400  # whole nodes of the stream are trimmed
    assert connection("XREVRANGE", "load/1/0", "+", "-", "COUNT", 1)[0][1] == [b"payload", b"last"]
    assert redis.length() == 0


def test_large_body_arrives_whole(daemon, redis, tmp_path):
    d = daemon(streams([redis]))
    body = os.urandom(1 << 20)
    (tmp_path / "large").write_bytes(body)
    result = d.publish("--whole-file", "--ring", str(4 << 20), tmp_path / "large")
    assert result.returncode == 0, result.stderr
    assert [fields[b"body"] for _, fields in redis.entries("t")] == [body]


@pytest.mark.sanitizers
def test_many_processes_and_lanes_keep_each_lanes_order(box, daemon, redis):
    d = daemon(streams([redis], links=2))
    producers = [Producer(box, d, number, count=2000, lanes=4, low=10, high=2000, batch=1 + number * 7)
                 for number in range(1, 5)]
    for producer in producers:
        assert producer.finish() == {"delivered": 8000}
    assert check_all_arrived(producers, StreamArrivals(redis)) == 0


@pytest.mark.sanitizers
def test_channel_messages_are_sent_once_the_server_has_them(box, daemon, redis):
    """The subscriber is there before the first of them, so each reaches it."""
    subscriber = Subscriber(redis, "load/*")
    d = daemon(channels([redis]))
    producer = Producer(box, d, count=4000, lanes=2, low=10, high=4000, batch=16, ring=1 << 20)
    assert producer.finish() == {"sent": 8000}
    subscriber.read(8000)
    assert check_all_arrived([producer], subscriber) == 0


def test_channel_takes_no_headers(daemon, redis):
    d = daemon(channels([redis]))
    result = d.publish("-H", "a=b", "-m", "x")
    assert said(result) == {"accepted": 1, "rejected": 1} and "PUBLISH has no headers" in result.stderr


@pytest.mark.sanitizers
@pytest.mark.parametrize("fault", ["kill", "restart"])
def test_lost_server_loses_nothing(box, daemon, fault, capsys):
    """Acknowledged entries are on its disk. Unacknowledged ones may be there twice."""
    redis = Redis(box, durable=True).start()
    d = daemon(streams([redis], **FAST, message_timeout_ms=600000))
    producers = [Producer(box, d, number, count=COUNT, rate=RATE, low=10, high=4000, ring=1 << 20, batch=8,
                          deadline_s=900 if FULL else 120) for number in range(1, PROCESSES + 1)]
    for share in (0.3, 0.6):
        wait_for(lambda s=share: sum(p.file.completed() for p in producers) >= s * PROCESSES * COUNT,
                 f"{share:.0%} completed", 600 if FULL else 60)
        redis.kill() if fault == "kill" else redis.stop()
        d.wait_not_ready(redis)
        redis.start()
        d.wait_ready(redis, 60)
    for producer in producers:
        assert producer.finish(900 if FULL else 120) == {"delivered": COUNT}
    duplicates = check_all_arrived(producers, StreamArrivals(redis))
    resent = sum(producer.file.resent for producer in producers)
    with capsys.disabled():
        print(f" {PROCESSES}x{COUNT} {fault}: {resent} sent again, {duplicates} duplicates", end="")
    assert duplicates <= resent


def test_wrong_type_is_rejected_with_its_code_and_hurts_no_other(box, daemon, redis):
    redis.must("SET", "text", "x")
    d = daemon(streams([redis]))
    before = redis.connections()
    beside = Producer(box, d, count=3000, rate=1500)
    beside.wait_accepted(200)
    for _ in range(3):
        result = d.publish("-m", "x", topic="text")
        assert result.returncode == 1 and said(result) == {"accepted": 1, "rejected": 1}
        assert "WRONGTYPE" in result.stderr and re.search(r"\b2\b", result.stderr), result.stderr
    assert beside.finish() == {"delivered": 3000}
    assert beside.file.resent == 0 and redis.connections() == before + 1
    assert check_all_arrived([beside], StreamArrivals(redis)) == 0


def test_missing_stream_is_rejected_where_none_is_made(daemon, redis):
    redis.must("XADD", "there", "*", "a", "b")
    d = daemon(streams([redis], redis={"nomkstream": True}))
    result = d.publish("-m", "x", topic="nowhere")
    assert said(result) == {"accepted": 1, "rejected": 1}
    assert "there is no such stream" in result.stderr and "40" in result.stderr
    assert redis("EXISTS", "nowhere") == 0
    assert d.publish("-m", "x", topic="there").returncode == 0


ACL = ["user gate on >tide! ~open:* &open:* +xadd +publish +hello"]


@pytest.mark.parametrize("make", [streams, channels])
def test_no_permission_is_rejected(box, daemon, tmp_path, make):
    """The user may not even PING, whose refusal proves as much as its answer."""
    redis = Redis(box, lines=ACL).start()
    entry = make([redis])
    entry["redis"] |= {"username": "gate", "password_file": secret(tmp_path / "pw", "tide!")}
    d = daemon(entry)
    assert d.publish("-m", "x", topic="open:1").returncode == 0
    result = d.publish("-m", "x", topic="closed")
    assert said(result) == {"accepted": 1, "rejected": 1} and "NOPERM" in result.stderr
    assert d.publish("-m", "x", topic="open:1").returncode == 0
    assert d.link_states() == ["ready"]


@pytest.mark.sanitizers
@pytest.mark.parametrize("lines", [["requirepass tide!"], ["requirepass tide!", 'rename-command HELLO ""']],
                         ids=["HELLO", "AUTH"])
def test_wrong_password_holds_messages_and_says_why(box, daemon, tmp_path, lines):
    redis = Redis(box, lines=lines).start()
    d = daemon(streams([redis], redis={"password_file": secret(tmp_path / "pw", "ebb-and-flow")}), ready=False)
    wait_for(lambda: "WRONGPASS" in str(d.rows("brokers")), lambda: f"the broker's row to say why: {d.rows('brokers')}")
    result = d.publish("--timeout", "300", "-m", "x")
    assert said(result) == {"accepted": 1, "expired": 1}
    # The server is not hammered: each attempt is a connection.
    assert redis("AUTH", "tide!") == "OK"
    assert d.rows("brokers")[0]["attempts"] < 20
    assert "ebb-and-flow" not in d.process.text() and "ebb-and-flow" not in str(d.rows("brokers"))
    redis("CONFIG", "SET", "requirepass", "ebb-and-flow", user=["tide!"])
    d.wait_ready(redis, 30)
    assert d.publish("-m", "x").returncode == 0


def test_user_that_needs_a_password_and_has_none(box, daemon):
    redis = Redis(box, lines=["requirepass tide!"]).start()
    d = daemon(streams([redis]), ready=False)
    wait_for(lambda: "NOAUTH" in str(d.rows("brokers")), lambda: f"the broker's row to say why: {d.rows('brokers')}")


def tries(redis):
    """Writes that write nothing, and were refused."""
    match = re.search(r"rejected_calls=(\d+)", redis.info("commandstats", "cmdstat_setrange") or "")
    return int(match.group(1)) if match else 0


@pytest.mark.sanitizers
def test_no_memory_is_backpressure(box, daemon, redis):
    """maxmemory is reached and raised again: no link reconnects, nothing is lost, nothing twice."""
    d = daemon(streams([redis], **FAST, message_timeout_ms=600000))
    producers = [Producer(box, d, number, count=4000, rate=1000, low=10, high=500, ring=1 << 18) for number in (1, 2)]
    wait_for(lambda: sum(p.file.completed() for p in producers) > 1500, "1500 completed")
    redis.must("CONFIG", "SET", "maxmemory", 1)
    wait_for(lambda: d.link_states() == ["suspect"], lambda: f"the link to be suspect: {d.links()}")
    wait_for(lambda: "OOM" in str(d.links()), lambda: f"the link to say why: {d.links()}")
    held = redis.length()
    # It is asked again and again, and takes nothing; a full ring is what producers see.
    wait_for(lambda: tries(redis) >= 4, "four tries", 20)
    wait_for(lambda: all(p.file.again > 0 for p in producers), "full rings", 20)
    assert redis.length() == held and d.link_states() == ["suspect"]
    redis.must("CONFIG", "SET", "maxmemory", 0)
    d.wait_ready(redis)
    for producer in producers:
        assert producer.finish() == {"delivered": 4000}
    assert check_all_arrived(producers, StreamArrivals(redis), order=False) == 0
    assert [link["failures"] for link in d.links()] == [0]


def test_replica_is_left_for_the_primary(box, daemon):
    primary = Redis(box, "primary").start()
    replica = Redis(box, "replica", lines=[f"replicaof 127.0.0.1 {primary.port}"]).start()
    d = daemon(streams([primary, replica], **FAST), ready=False)
    d.wait_ready(primary)
    producer = Producer(box, d, count=2000)
    assert producer.finish() == {"delivered": 2000}
    assert check_all_arrived([producer], StreamArrivals(primary)) == 0
    assert "replica" in str(d.rows("brokers")) and d.link_states(replica) != ["ready"]


def test_failover_moves_everything_to_the_new_primary(box, daemon):
    """A primary that becomes a replica answers READONLY; refused messages go to the other."""
    a, b = Redis(box, "a").start(), Redis(box, "b")
    b.config.write_text(b.config.read_text() + f"replicaof 127.0.0.1 {a.port}\n")
    b.start()
    wait_for(lambda: b("INFO", "replication").find(b"master_link_status:up") > 0, "the replica to be in step")
    d = daemon(streams([a, b], **FAST, message_timeout_ms=60000), ready=False)
    d.wait_ready(a)
    producers = [Producer(box, d, number, count=4000, rate=1500, low=10, high=500) for number in (1, 2)]
    wait_for(lambda: sum(p.file.completed() for p in producers) > 2000, "2000 completed")
    answer = a("FAILOVER", "TO", "127.0.0.1", b.port)
    assert answer == "OK", answer
    d.wait_ready(b, 30)
    for producer in producers:
        assert producer.finish() == {"delivered": 4000}
    check_all_arrived(producers, StreamArrivals(b))


def test_server_that_loads_is_not_used(box, daemon):
    """key-load-delay slows the loading of a dump down; another server carries the load meanwhile."""
    slow, other = Redis(box, "slow", lines=["rdbcompression no"]).start(), Redis(box, "other").start()
    connection = Connection(slow.port)
    for number in range(300):
        assert connection("SET", f"k{number}", "v" * 2048) == "OK"  # it looks up every 1,024 bytes
    assert connection("SAVE") == "OK"
    slow.kill()
    slow.config.write_text(slow.config.read_text() + "key-load-delay 50000\nloading-process-events-interval-bytes 1024\n")
    slow.start()
    assert "LOADING" in str(slow("GET", "k1"))
    d = daemon(streams([slow, other], **FAST), ready=False)
    d.wait_ready(other)
    wait_for(lambda: "LOADING" in str(d.rows("brokers")), lambda: f"the row to say why: {d.rows('brokers')}")
    producer = Producer(box, d, count=1000)
    assert producer.finish() == {"delivered": 1000}
    assert slow.process.alive() and "ready" not in d.link_states(slow)
    check_all_arrived([producer], StreamArrivals(other))
    Connection(slow.port)("CONFIG", "SET", "key-load-delay", 0)
    slow.wait_loaded()
    d.wait_ready(slow, 30)


@pytest.mark.parametrize("kind, words", [("cluster", "node of a Redis Cluster"), ("sentinel", "is a Sentinel")])
def test_server_that_takes_no_entries_is_refused_at_the_handshake(box, daemon, kind, words):
    if kind == "cluster":
        redis = Redis(box, lines=["cluster-enabled yes", f"cluster-port {box.port()}"]).start()
    else:
        redis = Redis(box, options=["--sentinel"]).start()
    d = daemon(streams([redis], **FAST), ready=False)
    wait_for(lambda: words in str(d.rows("brokers")), lambda: f"the row to say why: {d.rows('brokers')}")
    result = d.publish("--timeout", "500", "-m", "x")
    assert said(result) == {"accepted": 1, "expired": 1}, result.stderr


class OddRedis:
    """Answers XADD with `answer`, as no Redis does, and counts."""

    def __init__(self, box, answer):
        self.answer, self.count = answer, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            threading.Thread(target=self._try_to_serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _try_to_serve(self, connection):
        try:
            self._serve(connection)
        except ConnectionError:
            pass  # the daemon resets what makes no sense

    def _serve(self, connection):
        stream = connection.makefile("rb")
        while (line := stream.readline()):
            words = []
            for _ in range(int(line[1:])):
                words.append(stream.read(int(stream.readline()[1:]) + 2)[:-2])
            if words[0] == b"HELLO":
                connection.sendall(b"*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n")
            elif words[0] == b"PING":
                connection.sendall(b"+PONG\r\n")
            else:
                self.count += words[0] == b"XADD"
                connection.sendall(self.answer)


@pytest.mark.parametrize("answer, outcome", [(b"+1700000000000-0\r\n", "delivered"), (b"+OK\r\n", "unknown"),
                                             (b":1\r\n", "unknown"), (b"*1\r\n$1\r\nx\r\n", "unknown")])
def test_answer_of_an_unexpected_kind_is_not_a_reason_to_send_again(box, daemon, answer, outcome):
    redis = OddRedis(box, answer)
    d = daemon(streams([redis.address], **FAST))
    result = d.publish("--timeout", "10000", "-m", "x")
    assert said(result) == {"accepted": 1, outcome: 1}, result.stderr
    assert redis.count == 1


@pytest.fixture
def replicated(box):
    """A primary, and a replica that is in step with it."""
    primary = Redis(box, "primary", lines=["repl-diskless-sync-delay 0"]).start()
    replica = Redis(box, "replica", lines=[f"replicaof 127.0.0.1 {primary.port}"]).start()
    wait_for(lambda: replica("INFO", "replication").find(b"master_link_status:up") > 0, "the replica to be in step")
    wait_for(lambda: primary("WAIT", 1, 100) == 1, "the primary to know it")
    return primary, replica


def test_wait_delivers_replicated_entries(box, daemon, replicated):
    primary, replica = replicated
    d = daemon(streams([primary], redis={"wait_replicas": 1, "wait_timeout_ms": 1500}))
    producer = Producer(box, d, count=3000, batch=32)
    assert producer.finish() == {"delivered": 3000}
    assert replica.length() == 3000
    check_all_arrived([producer], StreamArrivals(replica))
    assert d.link_states() == ["ready"]


def test_wait_reports_missing_replicas_honestly(daemon, replicated):
    primary, replica = replicated
    d = daemon(streams([primary], redis={"wait_replicas": 1, "wait_timeout_ms": 200}))
    replica.freeze()
    lane = Client(d.socket).lane()
    completion = lane.publish_sync(b"x", topic=b"alone")
    (identity, _), = primary.entries("alone")
    milliseconds, _, number = identity.partition("-")
    assert (completion.name, completion.code, completion.attempts) == ("unknown", 41, 1)
    assert completion.reference == int(milliseconds) << 20 | int(number)
    lane.client.close()
    assert d.link_states() == ["ready"] and d.rows("pools")[0]["resent"] == 0
    replica.thaw()


@pytest.mark.sanitizers
@pytest.mark.parametrize("fault", ["kill", "freeze", "reset"])
def test_two_sinks_lose_nothing(box, daemon, fault):
    """The sink records before it answers."""
    sinks = [Sink(box, name, protocol="redis").start() for name in ("a", "b")]
    d = daemon(streams(sinks, **FAST))
    producers = [Producer(box, d, number, count=4000, rate=1500, low=10, high=4000, ring=1 << 20, batch=8)
                 for number in range(1, 5)]
    for share, victim in ((0.3, sinks[0]), (0.6, sinks[1])):
        wait_for(lambda s=share: sum(p.file.completed() for p in producers) >= s * 16000, f"{share:.0%} completed", 60)
        if fault == "reset":
            victim.tell("reset")
            continue
        victim.kill() if fault == "kill" else victim.freeze()
        d.wait_not_ready(victim)
        victim.start() if fault == "kill" else victim.thaw()
        d.wait_ready(victim)
    for producer in producers:
        assert producer.finish() == {"delivered": 4000}
    check_all_arrived(producers, *sinks)


CODES = {2: "rejected", 3: "rejected", 99: "rejected", 10: "held", 12: "held", 21: "left", 24: "left"}


@pytest.mark.parametrize("code", CODES)
def test_each_error_has_its_documented_effect(box, daemon, code):
    """Every seventh message is refused once; all other messages arrive once in the end."""
    sink = Sink(box, protocol="redis", options=["--reject", str(code), "--reject-every", "7"]).start()
    d = daemon(streams([sink], **FAST, message_timeout_ms=60000))
    producer = Producer(box, d, count=70, low=32, high=32)
    if CODES[code] == "rejected":
        assert producer.finish() == {"delivered": 60, "rejected": 10}
    else:
        assert producer.finish(60) == {"delivered": 70}
        check_all_arrived([producer], sink, order=False)
    connections = {arrival["conn"] for arrival in sink.arrivals()}
    assert (len(connections) > 1) == (CODES[code] == "left")


def test_sink_that_wants_a_password(box, daemon, tmp_path):
    sink = Sink(box, protocol="redis", options=["--auth", f"gate:{secret(tmp_path / 'pw', 'tide!')}"]).start()
    d = daemon(streams([sink], redis={"username": "gate", "password_file": tmp_path / "pw", "database": 2}))
    assert d.publish("-k", "k", "-H", "a=b", "-m", "x").returncode == 0
    arrival, = sink.arrivals()
    assert (arrival["topic"], arrival["key"], arrival["headers"], arrival["body"]) == ("t", "k", "a=b", "x")


def test_upgrade_keeps_the_connection(box, daemon, redis):
    """The handshake asked for more than the first answer: SELECT is not sent again."""
    d = daemon(streams([redis], redis={"database": 2}))
    serving = Upgraded(box, d)
    producers = [Producer(box, d, number, count=6000, rate=2000, low=10, high=500, batch=8) for number in (1, 2)]
    before = redis.connections()
    for share in (0.2, 0.4, 0.6):
        wait_for(lambda s=share: sum(p.file.completed() for p in producers) >= s * 12000, f"{share:.0%} completed", 60)
        assert serving.upgrade().returncode == 0
    for producer in producers:
        assert producer.finish() == {"delivered": 6000}
        assert producer.file.resent == 0
    assert redis.connections() == before + 1
    assert redis.info("commandstats", "cmdstat_select").startswith("calls=1,")
    connection = Connection(redis.port)
    assert connection("SELECT", 2) == "OK"
    assert sum(connection("XLEN", stream) for stream in connection("KEYS", "load/*")) == 12000


def test_one_wait_at_a_time_without_replicas(daemon, redis):
    """Without replicas each WAIT takes its whole time. Messages that arrive meanwhile share the next one."""
    d = daemon(streams([redis], redis={"wait_replicas": 1, "wait_timeout_ms": 250}))
    producer = Producer(d.box, d, count=400, rate=200)
    assert producer.finish() == {"unknown": 400}
    assert redis.length("load/1/0") == 400
    assert producer.file.elapsed_max_us < 2000000, "a message waited for the WAITs of others"
