"""TLS against real mosquitto and against the sink: delivery, refusals and their reasons, resumption, and faults, which
must cost no more than in the clear."""

import random
import time

import pytest

from harness import Daemon, Sink, have, merged, pool, program, wait_for
from harness_nats import NatsServer
from load import Producer, check_all_arrived, wait_all_arrived
from test_failover import FAST, kept_up, settle, suffer, wait_share
from test_nats import nats_pool
from tls import TlsMosquitto, TlsSink, newest_tls, openssl


def tls_pool(brokers, authority, **changes):
    return pool(brokers, **merged({"tls": {"ca_file": authority.cert}}, changes))


def why(daemon):
    return daemon.links()[0]["why"]


def wait_why(daemon, words, deadline_s=15):
    wait_for(lambda: words in why(daemon), lambda: f"\"{words}\", the link says \"{why(daemon)}\"", deadline_s)


def check_backs_off_to_the_cap(daemon, retry_max_ms=10000):
    """A refused link backs off. With TLS 1.3 the broker closes a connection on which the client has already sent data,
    and the reset may overtake the alert: that attempt says nothing of the refusal, and the next comes soon."""
    unheard = daemon.process.text().count('cause="closed by the broker"')
    link = daemon.links()[0]
    assert link["state"].lower() == "backoff" and link["connects"] == 1 + unheard, link
    timer = f"no more than one attempt in half of {retry_max_ms} ms"
    attempts = daemon.rows("brokers")[0]["attempts"]
    assert attempts == 1 + unheard, timer


@pytest.mark.sanitizers
@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_messages_of_all_sizes_arrive_in_order(box, daemon, authority, identity, version, tls):
    broker = TlsMosquitto(box, authority, identity, environment=newest_tls(box, tls)).start()
    subscriber = broker.subscriber()
    d = daemon(tls_pool([broker], authority, mqtt={"version": version}))
    assert d.links()[0]["tls"] == f"TLSv{tls}"
    producers = [Producer(box, d, 1, count=3000, low=16, high=256, lanes=2),
                 Producer(box, d, 2, count=400, low=65536, ring=1 << 20),
                 Producer(box, d, 3, count=1000, low=3000, high=20000, ring=1 << 20)]
    for producer in producers:
        assert producer.finish() == {"delivered": producer.count * producer.lanes}
    wait_all_arrived(producers, subscriber)
    assert check_all_arrived(producers, subscriber) == 0
    assert d.stop() == 0


@pytest.mark.sanitizers
def test_one_byte_and_empty_bodies(box, daemon, authority, identity):
    sink = TlsSink(box, identity).start()
    d = daemon(tls_pool([sink], authority))
    for body in ("x", ""):
        result = d.publish("-m", body)
        assert result.returncode == 0 and "delivered=1" in result.stderr, result.stderr
    assert [arrival["body"] for arrival in sink.arrivals()] == ["x", ""]


def test_qos_0_is_sent(box, daemon, authority, identity):
    sink = TlsSink(box, identity).start()
    d = daemon(tls_pool([sink], authority, mqtt={"qos": 0}))
    producers = [Producer(box, d, 1, count=2000, low=16, high=40000, ring=1 << 20)]
    assert producers[0].finish() == {"sent": 2000}
    wait_for(lambda: sink.stats()["messages"] == 2000, "all to be at the sink")
    check_all_arrived(producers, sink)


def test_refused_unknown_ca(box, daemon, authority, stranger, identity):
    broker = TlsMosquitto(box, authority, identity).start()
    d = daemon(tls_pool([broker], stranger), ready=False)
    wait_why(d, f'the certificate of "broker" is by "Test CA", a CA unknown to {stranger.cert}')
    check_backs_off_to_the_cap(d)
    assert "a CA unknown to" in d.rows("pools")[0]["failing"][0]["why"]


def test_the_system_store_does_not_know_the_tests_ca(box, daemon, authority, identity):
    broker = TlsMosquitto(box, authority, identity).start()
    d = daemon(pool([broker], tls={"verify": True}), ready=False)
    wait_why(d, "a CA unknown to this system")


@pytest.mark.parametrize("server_name", [None, "wrong.test"])
def test_refused_wrong_name(box, daemon, authority, server_name):
    broker = TlsMosquitto(box, authority, authority.issue(names="DNS:other.test,IP:10.0.0.1")).start()
    changes = {"tls": {"server_name": server_name}} if server_name else {}
    d = daemon(tls_pool([broker], authority, **changes), ready=False)
    wait_why(d, f"its certificate is for other.test, 10.0.0.1, not for {server_name or '127.0.0.1'}")
    check_backs_off_to_the_cap(d)


def test_server_name_in_place_of_the_address(box, daemon, authority):
    broker = TlsMosquitto(box, authority, authority.issue(names="DNS:other.test")).start()
    d = daemon(tls_pool([broker], authority, tls={"server_name": "other.test"}))
    assert d.publish("-m", "x").returncode == 0


def test_refused_expired_certificate(box, daemon, authority):
    broker = TlsMosquitto(box, authority, authority.issue("old", days=-1)).start()
    d = daemon(tls_pool([broker], authority), ready=False)
    wait_why(d, 'the certificate of "old" has expired: it was valid until 20')
    check_backs_off_to_the_cap(d)


def test_verify_false_accepts_all_that(box, daemon, authority):
    broker = TlsMosquitto(box, authority, authority.issue("old", names="DNS:other.test", days=-1)).start()
    d = daemon(pool([broker], tls={"verify": False}))
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.sanitizers
def test_client_certificate_is_shown(box, daemon, authority, identity):
    broker = TlsMosquitto(box, authority, identity, lines=["require_certificate true"]).start()
    client = authority.issue("client", names=None)
    d = daemon(tls_pool([broker], authority, tls={"cert_file": client.cert, "key_file": client.key}))
    assert d.publish("-m", "x").returncode == 0
    # A reconnect, too: a broker that cannot resume such a session must not keep us out.
    broker.kill()
    d.wait_not_ready(broker)
    broker.start()
    d.wait_ready(broker)
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.sanitizers
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_client_certificate_is_missing(box, daemon, authority, identity, tls):
    broker = TlsMosquitto(box, authority, identity, lines=["require_certificate true"],
                          environment=newest_tls(box, tls)).start()
    d = daemon(tls_pool([broker], authority), ready=False)
    wait_why(d, "the pool has no tls.cert_file")
    check_backs_off_to_the_cap(d)


def test_client_certificate_of_a_strange_ca(box, daemon, authority, stranger, identity):
    sink = TlsSink(box, identity, clients=authority).start()
    client = stranger.issue("client", names=None)
    d = daemon(tls_pool([sink], authority, tls={"cert_file": client.cert, "key_file": client.key}), ready=False)
    wait_why(d, "the broker refuses: alert 48, unknown CA")
    check_backs_off_to_the_cap(d)


def test_min_version_that_the_broker_has(box, daemon, authority, identity):
    broker = TlsMosquitto(box, authority, identity).start()
    d = daemon(tls_pool([broker], authority, tls={"min_version": "1.3"}))
    assert d.links()[0]["tls"] == "TLSv1.3"


def test_min_version_that_the_broker_does_not_have(box, daemon, authority, identity):
    broker = TlsMosquitto(box, authority, identity, environment=newest_tls(box, "1.2")).start()
    d = daemon(tls_pool([broker], authority, tls={"min_version": "1.3"}), ready=False)
    wait_why(d, "the broker speaks no version of TLS from 1.3 on")
    check_backs_off_to_the_cap(d)


def test_a_port_that_is_not_tls(box, daemon, authority):
    broker = Sink(box).start()
    d = daemon(tls_pool([broker], authority), ready=False)
    wait_for(lambda: "TLS" in why(d), lambda: why(d))


def test_a_silent_port_times_out(box, daemon, authority, identity):
    sink = TlsSink(box, identity).start()
    sink.freeze()
    d = daemon(tls_pool([sink], authority, health={"connect_timeout_ms": 300}), ready=False)
    wait_why(d, "no end of tls in 300 ms")
    sink.thaw()
    d.wait_ready(sink)


def test_handshakes_do_not_block_the_loop(box, daemon, authority, identity):
    """While some brokers stall in the handshake, all other links are served."""
    silent = [TlsSink(box, identity, f"silent{number}").start() for number in range(3)]
    sink = TlsSink(box, identity).start()
    for broker in silent:
        broker.freeze()
    d = daemon(tls_pool(silent, authority, name="silent", health={"connect_timeout_ms": 60000}),
               tls_pool([sink], authority), ready=False)
    d.wait_ready(sink)
    wait_for(lambda: all(d.link_states(broker) == ["tls"] for broker in silent), lambda: f"handshakes: {d.links()}")
    producer = Producer(box, d, 1, count=2000, low=16, high=4000)
    assert producer.finish() == {"delivered": 2000}
    assert [d.link_states(broker) for broker in silent] == [["tls"]] * 3
    for broker in silent:
        broker.thaw()
    d.wait_ready()


@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "tls"])
def test_watermarks_bound_unsent_bytes(box, daemon, authority, identity, encrypted):
    """A broker that reads nothing: the link stops at the high mark, ciphertext that waits included, and the
    producer's own ring fills. Waiting messages arrive once, in order."""
    high, size = 65536, 3000
    sink = (TlsSink(box, identity) if encrypted else Sink(box)).start()
    d = daemon(pool([sink], **({"tls": {"ca_file": authority.cert}} if encrypted else {}),
                    watermarks={"high": high, "low": 16384}, window={"messages": 60000},
                    health={"stall_timeout_ms": 120000, "ack_timeout_ms": 60000, "idle_ms": 60000}))
    sink.freeze()
    producer = Producer(box, d, 1, count=5000, low=size, ring=1 << 20, batch=8)
    unsent = []

    def blocked():
        link = d.links()[0]
        unsent.append(link["unsent_bytes"])
        return not link["writable"] and link["unsent_bytes"] > 0 and producer.file.again > 1
    wait_for(blocked, lambda: f"the link to be unwritable: {d.links()}", 30)
    # It is the mark that stops it and not the window; a record more than the mark, and in TLS what frames it.
    assert d.links()[0]["outstanding"] < 60000 and max(unsent) <= high + 2 * size, max(unsent)
    assert producer.file.completed() == 0
    sink.thaw()
    assert producer.finish() == {"delivered": 5000}
    assert check_all_arrived([producer], sink) == 0


@pytest.mark.sanitizers
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_sessions_are_resumed(box, daemon, authority, identity, tls):
    sink = TlsSink(box, identity, environment=newest_tls(box, tls)).start()
    d = daemon(tls_pool([sink], authority, **FAST))
    assert d.links()[0]["tls"] == f"TLSv{tls}"
    for times in range(1, 5):
        assert d.publish("-m", "x").returncode == 0
        sink.tell("reset" if times % 2 else "close")
        wait_for(lambda: d.links()[0]["connects"] > times, "another connection")
        d.wait_ready(sink)
        assert d.links()[0]["tls"] == f"TLSv{tls} resumed", f"connection {times}"
    stats = sink.stats()
    assert stats["tls_handshakes"] >= 5 and stats["tls_resumed"] == stats["tls_handshakes"] - 1, stats


def test_mosquitto_resumes(box, daemon, authority, identity):
    broker = TlsMosquitto(box, authority, identity).start()
    d = daemon(tls_pool([broker], authority, **FAST))
    # mosquitto's tickets die with it: it must drop the link and live.
    took_over = box.run("mosquitto_pub", "-h", "127.0.0.1", "-p", broker.port, "-i", client_id(broker), "-t", "t", "-n")
    assert took_over.returncode == 0, took_over.stderr
    wait_for(lambda: d.links()[0]["connects"] == 2, "another connection")
    d.wait_ready(broker)
    assert d.links()[0]["tls"] == "TLSv1.3 resumed"


def client_id(broker):
    """The daemon's client ids, from mosquitto's log."""
    wait_for(lambda: " as tidegate-" in broker.process.text(), "the client in the log")
    return "tidegate-" + broker.process.text().rpartition(" as tidegate-")[2].split()[0]


@pytest.mark.sanitizers
@pytest.mark.parametrize("fault", ["kill", "restart", "freeze"])
def test_two_mosquittos_lose_nothing(box, daemon, authority, identity, fault):
    dice = random.Random(fault + "t")
    brokers = [TlsMosquitto(box, authority, identity, name, memory=True) for name in ("a", "b")]
    subscribers = [broker.prepare(qos=0 if fault == "kill" else 1) for broker in brokers]
    d = daemon(tls_pool(brokers, authority, **FAST))
    producers = [Producer(box, d, number, count=4000, rate=1600, low=10, high=4000, ring=1 << 20, batch=8, deadline_s=90)
                 for number in range(1, 5)]
    wait_share(producers, 0.3 + dice.uniform(-0.05, 0.05))
    at = dice.randrange(2)
    victim, subscriber = brokers[at], subscribers[at]
    if fault == "kill":
        kept_up(producers, *subscribers)
    suffer(d, fault, victim, subscriber)
    for producer in producers:
        assert producer.finish(120) == {"delivered": producer.count}
    settle(producers, *subscribers)
    check_all_arrived(producers, *subscribers)


@pytest.mark.sanitizers
def test_sink_resets_and_stalls_under_load(box, daemon, authority, identity):
    sinks = [TlsSink(box, identity, name).start() for name in ("a", "b")]
    d = daemon(tls_pool(sinks, authority, **FAST))
    producers = [Producer(box, d, number, count=3000, rate=1500, low=10, high=60000, ring=1 << 20, batch=8)
                 for number in range(1, 5)]
    wait_share(producers, 0.2)
    sinks[0].tell("set", "reset-after", "100")
    wait_share(producers, 0.4)
    sinks[0].tell("set", "reset-after", "0")
    sinks[1].tell("set", "read-rate", "200000")
    wait_share(producers, 0.7)
    sinks[1].tell("set", "read-rate", "0")
    for producer in producers:
        assert producer.finish(120) == {"delivered": producer.count}
    check_all_arrived(producers, *sinks)


def test_vanished_broker_is_left_within_three_seconds(box, daemon, authority, identity, network):
    brokers = [TlsSink(box, identity, name).start() for name in ("a", "b")]
    d = daemon(tls_pool(brokers, authority))
    producers = [Producer(box, d, 1, count=4000, rate=800, low=100, lanes=2, deadline_s=60)]
    wait_share(producers, 0.1)
    network.cut(brokers[0].port)
    began = time.monotonic()
    d.wait_not_ready(brokers[0])
    assert time.monotonic() - began < 3.5
    network.heal(brokers[0].port)
    assert producers[0].finish() == {"delivered": 8000}
    check_all_arrived(producers, *brokers)


BAD_FILES = {
    "ca_file": ("no certificate", "ca_file: {path} is no list of certificates: "),
    "cert_file": ("no certificate", "cert_file: {path} is no certificate chain: nothing of the kind in PEM form is in it"),
    "key_file": ("no key", "key_file: {path} is no private key: "),
}


@pytest.mark.parametrize("key", BAD_FILES)
def test_files_that_cannot_be_used_are_configuration_errors(box, authority, identity, key):
    content, words = BAD_FILES[key]
    path = box.path / "bad.pem"
    path.write_text(content)
    path.chmod(0o600)
    tls = {"ca_file": authority.cert, "cert_file": identity.cert, "key_file": identity.key, key: path}
    assert_refused(box, tls, f"pools[0].tls.{words.format(path=path)}")


def test_a_key_of_another_certificate_is_a_configuration_error(box, authority, identity):
    other = authority.issue("other")
    assert_refused(box, {"ca_file": authority.cert, "cert_file": identity.cert, "key_file": other.key},
                   f"pools[0].tls.key_file: {other.key} is not the key of the certificate in {identity.cert}")


def test_an_encrypted_key_is_a_configuration_error(box, authority, identity):
    path = box.path / "locked.key"
    openssl("ec", "-in", identity.key, "-aes256", "-passout", "pass:secret", "-out", path)
    path.chmod(0o600)
    assert_refused(box, {"cert_file": identity.cert, "key_file": path},
                   f"pools[0].tls.key_file: {path} is no private key: it is encrypted")


def assert_refused(box, tls, words):
    daemon = Daemon(box, [pool(["127.0.0.1:1"], tls=tls)])
    for check in (["--check"], []):
        result = box.run(program("tidegated"), "-c", daemon.config, *check)
        assert result.returncode == 2, result.stderr
        assert words in result.stderr, result.stderr


@pytest.mark.sanitizers
def test_nats_begins_in_the_clear(box, daemon, authority, identity):
    """INFO is plain, then TLS begins: CONNECT with its password is never sent in the clear."""
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    server = NatsServer(box, lines=[
        f'tls {{ cert_file: "{identity.cert}", key_file: "{identity.key}" }}',
        "authorization { user: gate, password: tide }"]).start()
    password = box.path / "nats.pw"
    password.touch(mode=0o600)
    password.write_text("tide\n")
    settings = {"jetstream": False, "username": "gate", "password_file": password}
    d = daemon(nats_pool([server], settings, tls={"ca_file": authority.cert}))
    assert d.links()[0]["tls"] == "TLSv1.3"
    producers = [Producer(box, d, 1, count=2000, low=16, high=20000, ring=1 << 20)]
    assert producers[0].finish() == {"sent": 2000}
    server.kill()
    d.wait_not_ready(server)
    server.start()
    d.wait_ready(server)


def test_nats_without_tls_is_refused(box, daemon, authority):
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    server = NatsServer(box).start()
    d = daemon(nats_pool([server], {"jetstream": False}, tls={"ca_file": authority.cert}), ready=False)
    wait_why(d, "the pool wants TLS and the server offers none")
    check_backs_off_to_the_cap(d)
