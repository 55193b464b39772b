"""A real nats-server: core and JetStream, under load, killed in the middle, and what it refuses."""

import base64
import binascii
import os
import re
import socket
import ssl
import threading

import pytest

from harness import FULL, Sink, have, need_localhost, pool, program, secret, wait_for
from harness_nats import NatsCluster, NatsServer, StreamReader, Subscriber
from load import Producer, check_all_arrived, wait_all_arrived
from tidegate_lib import Client
from tls import Authority

PROCESSES = 8
COUNT = 50000 if FULL else 3000
FAST = {"breaker": {"retry_ms": 100, "retry_max_ms": 500, "slow_start_ms": 500}}
USER = ('authorization { users = [ {user: maker, password: maker}, {user: gate, password: tide, '
        'permissions: { publish: { deny: ["no.>"] } } } ] }')


def nats_pool(brokers, nats=None, **changes):
    entry = pool(brokers, **changes)
    del entry["mqtt"]
    return {**entry, "protocol": "nats", "nats": nats or {}}


def summary(result):
    line = [line for line in result.stderr.splitlines() if line.startswith("accepted=")][-1]
    return dict(word.split("=") for word in line.split())


def producers_of(box, d, count=COUNT, processes=PROCESSES, **options):
    options = {"low": 10, "high": 2000, "batch": 8, "ring": 1 << 20, "deadline_s": 600 if FULL else 90,
               "topic": "load.t", **options}
    return [Producer(box, d, number, count=count, **options) for number in range(1, processes + 1)]


@pytest.fixture
def server(box):
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    return NatsServer(box).start()


@pytest.mark.sanitizers
def test_jetstream_delivers_every_message_once_and_in_order(daemon, server, box):
    server.stream()
    d = daemon(nats_pool([server], links=2))
    producers = producers_of(box, d)
    for producer in producers:
        assert producer.finish(600) == {"delivered": COUNT}
    assert check_all_arrived(producers, StreamReader(server)) == 0


@pytest.mark.sanitizers
def test_core_sends_every_message_once_and_in_order(daemon, server, box):
    subscriber = Subscriber(server, "load.>")
    d = daemon(nats_pool([server], {"jetstream": False}, links=2))
    producers = producers_of(box, d, count=COUNT // 2)
    for producer in producers:
        assert producer.finish(600) == {"sent": COUNT // 2}
    wait_all_arrived(producers, subscriber, deadline_s=300 if FULL else 60)
    assert check_all_arrived(producers, subscriber) == 0


@pytest.mark.sanitizers
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_restarted_server_has_everything_once(daemon, server, box, fault):
    """Nats-Msg-Id: a message that was stored and not yet acknowledged is sent again and not stored again."""
    server.stream()
    d = daemon(nats_pool([server], links=2, **FAST))
    producers = producers_of(box, d, rate=0 if FULL else 2000)
    for share in (0.25, 0.5, 0.75):
        goal = share * COUNT * PROCESSES
        wait_for(lambda: sum(p.file.completed() for p in producers) >= goal or not all(p.process.alive() for p in producers),
                 f"{share:.0%} completed", 300 if FULL else 60, 0.002)
        server.kill() if fault == "kill" else server.stop()
        server.start()
    resent = 0
    for producer in producers:
        assert producer.finish(600) == {"delivered": COUNT}
        resent += producer.file.resent
    assert resent > 0, "nothing was in flight at any of the faults"
    assert check_all_arrived(producers, StreamReader(server)) == 0


def test_killed_daemon_resends_under_the_same_id(daemon, server, box):
    server.stream()
    d = daemon(nats_pool([server], **FAST))
    producers = producers_of(box, d, rate=0 if FULL else 2000)
    for share in (0.3, 0.6):
        goal = share * COUNT * PROCESSES
        wait_for(lambda: sum(p.file.completed() for p in producers) >= goal, f"{share:.0%} completed", 300 if FULL else 60,
                 0.002)
        d.process.kill()
        d.start(ready=False)
    for producer in producers:
        assert producer.finish(600) == {"delivered": COUNT}
    assert check_all_arrived(producers, StreamReader(server)) == 0


@pytest.mark.parametrize("jetstream", [True, False])
def test_message_keeps_subject_key_headers_and_body(daemon, server, tmp_path, jetstream):
    server.stream("ALL", ["seen.>"])
    subscriber = Subscriber(server, "seen.>")
    d = daemon(nats_pool([server], {"jetstream": jetstream}))
    body = os.urandom(200000)
    (tmp_path / "large").write_bytes(body)
    assert d.publish("-k", "the key", "-H", "colour=grün", "-m", "Grüße", topic="seen.ü").returncode == 0
    assert d.publish("--whole-file", "--ring", str(1 << 20), tmp_path / "large", topic="seen.large").returncode == 0
    first, second = subscriber.wait(2)
    headers = first[2].decode().split("\r\n")
    assert first[0] == "seen.ü" and first[3].decode() == "Grüße"
    assert "Tidegate-Key: the key" in headers and "colour: grün" in headers
    assert any(line.startswith("Nats-Msg-Id: ") for line in headers) == jetstream
    assert second[3] == body


def rejected(result, code, words):
    assert result.returncode == 1
    assert summary(result)["rejected"] == "1", result.stderr
    assert str(code) in result.stderr and words in result.stderr, result.stderr


def test_missing_stream_is_rejected(daemon, server):
    server.stream()
    d = daemon(nats_pool([server]))
    rejected(d.publish("-m", "x", topic="nobody.home"), 503, "no stream takes this subject")
    assert d.publish("-m", "x", topic="load.x").returncode == 0


def test_full_stream_is_rejected_with_its_code(daemon, server):
    server.stream(max_msgs=1, discard="new")
    d = daemon(nats_pool([server]))
    assert d.publish("-m", "x", topic="load.x").returncode == 0
    rejected(d.publish("-m", "x", topic="load.x"), 10077, "maximum messages exceeded")


@pytest.mark.parametrize("jetstream", [True, False])
def test_forbidden_subject_is_rejected_and_the_link_lives(box, daemon, tmp_path, jetstream):
    server = NatsServer(box, lines=[USER], maker=("maker", "maker")).start()
    server.stream("ALL", ["no.>", "yes.>"])
    d = daemon(nats_pool([server], {"jetstream": jetstream, "username": "gate",
                                    "password_file": secret(tmp_path / "pw", "tide")}))
    connects = d.rows("brokers")[0]["attempts"]
    rejected(d.publish("-m", "x", topic="no.way"), 0xff05, "permissions violation")
    assert d.publish("-m", "x", topic="yes.please").returncode == 0
    assert d.rows("brokers")[0]["attempts"] == connects


def test_body_larger_than_the_server_takes_is_rejected_and_the_link_lives(box, daemon, tmp_path):
    server = NatsServer(box, lines=["max_payload: 5000"]).start().stream()
    d = daemon(nats_pool([server]))
    connects = d.rows("brokers")[0]["attempts"]
    (tmp_path / "large").write_bytes(b"x" * 4980)
    rejected(d.publish("--whole-file", tmp_path / "large", topic="load.x"), 0xff02, "the server allows 5000")
    assert d.publish("-m", "small", topic="load.x").returncode == 0
    assert d.rows("brokers")[0]["attempts"] == connects


def test_subject_longer_than_this_servers_control_line_is_rejected_and_hurts_no_other(box, daemon):
    """Nothing that the server says beforehand tells that its max_control_line is another."""
    server = NatsServer(box, lines=["max_control_line: 512"]).start().stream()
    d = daemon(nats_pool([server], **FAST))
    beside = Producer(box, d, count=1500, rate=1500, topic="load.t")
    beside.wait_accepted(200)
    rejected(d.publish("-m", "x", topic="load." + "x" * 600), 0xff06, "allows shorter subjects only")
    assert beside.finish() == {"delivered": 1500}
    assert check_all_arrived([beside], StreamReader(server)) == 0
    # Those of the link that its lane was set apart on included.
    assert 2 <= sum(link["failures"] for link in d.links()) <= 5, d.links()


def test_unanswered_message_delays_no_other(box, daemon, server):
    """A subject with a subscriber and without a stream: neither the server nor the subscriber answers. Its messages
    become unknown at their deadline. Other messages do not wait for them, though there are more of those than the
    link's window."""
    server.stream()
    listener = Subscriber(server, "listen.>")
    d = daemon(nats_pool([server], window={"messages": 50, "low": 25},
                         health={"idle_ms": 200, "probe_timeout_ms": 300, "ack_timeout_ms": 2000}))
    silent = Producer(box, d, 1, count=3, topic="listen.a", words=["-F", "-T", "6000"])
    listener.wait(1)
    beside = Producer(box, d, 2, count=3000, topic="load.t", words=["-F"])
    assert beside.finish() == {"delivered": 3000}
    assert silent.process.alive()
    assert silent.finish() == {"unknown": 3}
    assert check_all_arrived([beside], StreamReader(server)) == 0
    assert d.links()[0]["failures"] == 0, d.links()


@pytest.mark.parametrize("topic", ["a..b", ".a", "a.*", ">", "a b", "a\r\nPUB b 0\r\n"])
def test_bad_subject_is_rejected_before_it_can_hurt_the_link(daemon, server, topic):
    server.stream()
    d = daemon(nats_pool([server]))
    connects = d.rows("brokers")[0]["attempts"]
    rejected(d.publish("-m", "x", topic=topic), 0xff01, "the subject has")
    assert d.publish("-m", "x", topic="load.x").returncode == 0
    assert d.rows("brokers")[0]["attempts"] == connects


def test_wrong_password_holds_messages_and_says_why(box, daemon, tmp_path):
    server = NatsServer(box, lines=[USER]).start()
    d = daemon(nats_pool([server], {"username": "gate", "password_file": secret(tmp_path / "pw", "ebb!")}), ready=False)
    wait_for(lambda: "Authorization Violation" in str(d.rows("brokers")),
             lambda: f"the broker's row to say why: {d.rows('brokers')}")
    result = d.publish("--timeout", "1500", "-m", "x")
    assert result.returncode == 1 and summary(result)["expired"] == "1", result.stderr
    assert "ready" not in d.link_states()
    # The account is not hammered.
    assert server.process.text().count("authentication error") < 5, server.process.text()
    assert "ebb!" not in d.process.text() and "ebb!" not in str(d.rows("brokers"))


def test_token_and_nkey_are_let_in(box, daemon, tmp_path):
    token = NatsServer(box, "token", lines=['authorization { token: "t\\"oken" }']).start()
    nkey = NatsServer(box, "nkey", lines=["authorization { users = [ { nkey: "
                                          "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK } ] }"]).start()
    one = nats_pool([token], {"jetstream": False, "token_file": secret(tmp_path / "token.pw", 't"oken')}, name="one")
    two = nats_pool([nkey], {"jetstream": False, "nkey_seed_file": secret(
        tmp_path / "seed", "SUAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4H776Y")}, name="two")
    d = daemon(one, two)
    assert d.publish("-m", "x", pool="one").returncode == 0
    assert d.publish("-m", "x", pool="two").returncode == 0


def user_seed(seed):
    """A user's nkey seed as text."""
    raw = bytes([18 << 3 | (20 << 3) >> 5, (20 << 3 & 31) << 3]) + seed
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def test_token_and_nkey_are_read_again(box, daemon, tmp_path):
    """The servers refuse what is in the files first."""
    token = NatsServer(box, "token", lines=['authorization { token: "tide" }']).start()
    nkey = NatsServer(box, "nkey", lines=["authorization { users = [ { nkey: "
                                          "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK } ] }"]).start()
    files = secret(tmp_path / "token.pw", "ebb"), secret(tmp_path / "seed", user_seed(bytes(32)))
    quick = {"breaker": {"retry_max_ms": 500}}
    d = daemon(nats_pool([token], {"jetstream": False, "token_file": files[0]}, name="one", **quick),
               nats_pool([nkey], {"jetstream": False, "nkey_seed_file": files[1]}, name="two", **quick), ready=False)
    wait_for(lambda: str(d.rows("brokers")).count("Authorization Violation") == 2,
             lambda: f"both to be refused: {d.rows('brokers')}")
    secret(files[0], "tide")
    secret(files[1], user_seed(bytes(range(32))) + "x")  # not a seed: the old one stays
    d.wait_ready(token)
    wait_for(lambda: "event=secret_renewal_failed pool=two key=nats.nkey_seed_file" in d.process.text(), "it to be said")
    secret(files[1], "SUAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4H776Y")
    d.wait_ready(nkey)
    assert d.publish("-m", "x", pool="one").returncode == 0
    assert d.publish("-m", "x", pool="two").returncode == 0


def test_leaving_server_is_left_before_it_goes(box, daemon):
    """Lame duck: the server says so, and its link drains while the other carries on."""
    servers = [NatsServer(box, name).start() for name in ("a", "b")]
    d = daemon(nats_pool(servers, {"jetstream": False}))
    d.ctl("status")
    servers[0].process.popen.send_signal(12)
    wait_for(lambda: "ready" not in d.link_states(servers[0]), "the leaving server's link to leave")
    assert d.publish("-m", "x").returncode == 0
    assert d.link_states(servers[1]) == ["ready"]


@pytest.mark.long
def test_killed_leader_of_a_cluster_costs_nothing(box, daemon):
    """A stream of three copies elects another leader, which takes seconds. Until then servers say of its subjects
    what they say of those that no stream takes; nothing is rejected for that, nothing lost, nothing stored twice."""
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    cluster = NatsCluster(box)
    cluster.stream()
    leader = cluster.leader()
    d = daemon(*(nats_pool(cluster.servers, **FAST, message_timeout_ms=300000, name=name) for name in ("events", "slow")))
    # Slow ones find the time between: links with room, and servers that have noticed and not elected.
    counts = [COUNT, COUNT, 600, 600]
    producers = [Producer(box, d, number, count=count, rate=rate, low=10, high=2000, batch=8, ring=1 << 20,
                          deadline_s=300, topic=f"load.{number}", pool=pool)
                 for number, (count, rate, pool) in enumerate(zip(counts, [0 if FULL else 1000] * 2 + [100] * 2,
                                                                  ["events"] * 2 + ["slow"] * 2), 1)]
    wait_for(lambda: sum(p.file.completed() for p in producers[:2]) > COUNT / 2, "a quarter completed", 60, 0.002)
    leader.kill()
    for producer in producers:
        assert producer.finish(300) == {"delivered": producer.count}
    # A subject without a stream still gives a different result.
    rejected(d.publish("--timeout", "60000", "-m", "x", topic="nobody.home"), 503, "no stream takes this subject")
    survivor = cluster.leader(but=leader)
    assert survivor is not leader
    leader.start()
    assert check_all_arrived(producers, StreamReader(survivor)) == 0


def text(d, command):
    return d.box.run(program("tidegatectl"), "-s", d.admin, command).stdout


def endpoints(d):
    return {row["address"] for row in d.rows("brokers")[0]["endpoints"]}


@pytest.mark.sanitizers
def test_learned_endpoints_carry_while_the_configured_server_is_gone(box, daemon):
    """One server of three is configured, and killed under load. The stream's only copy is on another."""
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    cluster = NatsCluster(box)
    cluster.stream(copies=1)
    holder = cluster.leader()
    configured = next(server for server in cluster.servers if server is not holder)
    others = {server.address for server in cluster.servers if server is not configured}
    d = daemon(nats_pool([configured], links=2, **FAST))
    stays = daemon(nats_pool([configured], {"learn_endpoints": False}, **FAST), name="stays")
    wait_for(lambda: endpoints(d) == others, lambda: f"the others to be known: {d.rows('brokers')}", 30)
    assert [row["endpoint"] for row in d.links()] == ["", ""]
    assert d.rows("brokers")[0]["links_elsewhere"] == 0
    producers = producers_of(box, d, processes=4, rate=0 if FULL else 1000)
    wait_for(lambda: sum(p.file.completed() for p in producers) >= COUNT, "a quarter completed", 60, 0.002)
    configured.kill()
    for producer in producers:
        assert producer.finish(600) == {"delivered": COUNT}
    wait_for(lambda: d.link_states() == ["ready", "ready"], lambda: f"both links to be at others: {d.links()}", 30)
    # The killed one may have led the cluster: no consumer can be made until another server leads.
    wait_for(lambda: cluster.api("STREAM.NAMES", but=configured), "a leader of the cluster", 60, 0.2)
    assert check_all_arrived(producers, StreamReader(holder)) == 0

    # It shows wherever a link does.
    where = [row["endpoint"] for row in d.links()]
    assert set(where) <= others and [row["broker"] for row in d.links()] == [configured.address] * 2
    assert f"{configured.address} at {where[0]}" in text(d, "links")
    assert "2 of its links at addresses of its cluster" in text(d, "brokers")
    lines = [event["line"] for event in d.rows("events")]
    assert any(f"broker={configured.address} endpoint={where[0]} " in line and "to=ready" in line for line in lines), lines

    # A pool that is told not to learn tries its own address only.
    wait_for(lambda: stays.rows("brokers")[0]["failures"] >= 8, lambda: f"eight failures: {stays.rows('brokers')}", 60)
    assert stays.rows("brokers")[0]["endpoints"] == [] and stays.links()[0]["endpoint"] == ""
    assert "ready" not in stays.link_states()

    # The configured one is back: links without a connection try it, and no connected link moves.
    configured.start()
    stays.wait_ready()
    assert d.publish("-m", "x", topic="load.after").returncode == 0
    assert [row["endpoint"] for row in d.links()] == where


@pytest.mark.sanitizers
@pytest.mark.parametrize("names", ["DNS:localhost", "IP:127.0.0.1"])
def test_learned_endpoint_shows_a_certificate_for_the_configured_host(box, daemon, tmp_path, names):
    """INFO before TLS is not protected, so the link must not use host names from it."""
    if not have("nats-server"):
        pytest.skip("needs nats-server")
    need_localhost()
    authority = Authority(tmp_path / "ca")
    identities = [authority.issue(names="DNS:localhost"), authority.issue(names=names)]
    cluster = NatsCluster(box, 2, lambda number: [
        f'tls {{ cert_file: "{identities[number].cert}", key_file: "{identities[number].key}" }}'])
    configured, other = cluster.servers
    d = daemon(nats_pool([f"localhost:{configured.port}"], {"jetstream": False}, tls={"ca_file": authority.cert}, **FAST))
    wait_for(lambda: other.address in endpoints(d), lambda: f"the other to be known: {d.rows('brokers')}", 30)
    configured.kill()
    if names == "DNS:localhost":
        wait_for(lambda: d.link_states() == ["ready"], lambda: f"the link to be at the other: {d.links()}", 30)
        assert d.links()[0]["endpoint"] == other.address and d.links()[0]["tls"].startswith("TLS")
        assert d.publish("-m", "x", topic="load.t").returncode == 0
    else:
        wait_for(lambda: f"at {other.address}: TLS: " in d.links()[0]["why"], lambda: f"a refusal: {d.links()}", 30)
        assert "ready" not in d.link_states()


@pytest.mark.sanitizers
@pytest.mark.parametrize("jetstream", [True, False])
def test_two_sinks_lose_nothing_when_one_is_killed(daemon, box, jetstream):
    sinks = [Sink(box, name, protocol="nats").start() for name in ("a", "b")]
    d = daemon(nats_pool(sinks, {"jetstream": jetstream}, **FAST))
    producers = producers_of(box, d, processes=4, rate=0 if FULL else 2000)
    wait_for(lambda: sum(p.file.completed() for p in producers) >= COUNT, "a quarter completed", 60, 0.002)
    sinks[0].kill()
    sinks[0].start()
    for producer in producers:
        assert producer.finish(600) == {"delivered" if jetstream else "sent": COUNT}
    check_all_arrived(producers, *sinks)


def test_sink_rejects_as_nats_does(daemon, box):
    sink = Sink(box, protocol="nats").start()
    d = daemon(nats_pool([sink]))
    sink.tell("set", "reject-every", "1")
    rejected(d.publish("-m", "x"), 503, "no stream takes this subject")
    sink.tell("set", "reject", "10077")
    rejected(d.publish("-m", "x"), 10077, "rejected as told")
    core = daemon(nats_pool([sink], {"jetstream": False}), name="core")
    rejected(core.publish("-m", "x"), 0xff05, "permissions violation")
    assert d.link_states() == core.link_states() == ["ready"]


def test_sink_demands_a_password(daemon, box, tmp_path):
    sink = Sink(box, protocol="nats", options=["--auth", f"gate:{secret(tmp_path / 'right', 'tide')}"]).start()
    d = daemon(nats_pool([sink], {"username": "gate", "password_file": tmp_path / "right"}))
    assert d.publish("-m", "x", "-k", "k", "-H", "a=b", topic="s").returncode == 0
    line = sink.record.read_text().split("\t")
    assert line[5:7] == ["s", "k"] and "a=b" in line[7] and line[8] == "x\n"
    secret(tmp_path / "wrong", "ebb")
    d = daemon(nats_pool([sink], {"username": "gate", "password_file": tmp_path / "wrong"}), name="two", ready=False)
    wait_for(lambda: "Authorization Violation" in str(d.rows("brokers")), "the broker's row to say why")


def tls_server(box, tmp_path, **more):
    authority = Authority(tmp_path / "ca")
    identity = authority.issue()
    return authority, NatsServer(box, lines=[f'tls {{ cert_file: "{identity.cert}", key_file: "{identity.key}" }}'], **more)


@pytest.mark.sanitizers
def test_tls_begins_behind_the_servers_first_words(box, daemon, server, tmp_path):
    """The stream is made in the clear, by a server on the same files that is ended before."""
    server.stream()
    server.stop()
    authority, secured = tls_server(box, tmp_path, name=server.name, port=server.port)
    secured.start()
    d = daemon(nats_pool([secured], tls={"ca_file": authority.cert}))
    assert d.links()[0]["tls"].startswith("TLS")
    producers = producers_of(box, d, count=1000, processes=3, high=20000)
    for producer in producers:
        assert producer.finish() == {"delivered": 1000}
    secured.stop()
    server.config.write_text(server.config.read_text().split("tls {")[0])
    server.start()
    assert check_all_arrived(producers, StreamReader(server)) == 0


class Pesterer(threading.Thread):
    """A server that pings without end and reads nothing. It is done when the client has left it."""
    GREETING = b'INFO {"server_id":"pester","version":"2.9.0","headers":true,"max_payload":1048576}\r\n'
    ENOUGH = 64 << 20

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.sent = 0
        self.start()

    def run(self):
        client, _ = self.listener.accept()
        with client:
            client.sendall(self.GREETING)
            heard, answered = b"", 0
            while answered < 2:  # the handshake's and the probe's
                heard += client.recv(65536)
                while answered < heard.count(b"PING\r\n"):
                    client.sendall(b"PONG\r\n")
                    answered += 1
            try:
                while self.sent < self.ENOUGH:
                    self.sent += client.send(b"PING\r\n" * 10000)
            except OSError:
                pass
        self.listener.close()


def test_a_server_that_pings_without_end_and_reads_nothing_is_left(daemon):
    server = Pesterer()
    d = daemon(nats_pool([server.address]), ready=False)
    server.join(60)
    assert not server.is_alive(), "neither was it left nor did it send all it had"
    assert server.sent < server.ENOUGH, "every ping was taken, and its answer kept"
    wait_for(lambda: "bytes of answers that it has asked for; 1048576 are the limit" in str(d.ctl("events")), "the reason")


def test_pool_and_server_must_agree_on_tls(box, daemon, server, tmp_path):
    authority, secured = tls_server(box, tmp_path, name="secured")
    secured.start()
    clear = daemon(nats_pool([secured]), name="clear", ready=False)
    wait_for(lambda: "the server wants TLS and the pool has no tls group" in str(clear.rows("brokers")), "the reason")
    wants = daemon(nats_pool([server], tls={"ca_file": authority.cert}), name="wants", ready=False)
    wait_for(lambda: "the pool wants TLS and the server offers none" in str(wants.rows("brokers")), "the reason")


def test_no_id_tells_another(daemon, server):
    """A client that sees the ids of messages can publish neither under the next id nor under one of its own."""
    server.stream("ALL", ["seen.>"])
    d = daemon(nats_pool([server]))
    client = Client(d.socket)
    lane = client.lane("events")
    for number in range(3):
        assert lane.publish_sync(b"order", topic=b"seen.t").name == "delivered"
    asking = server.connect()
    stored = [asking.request("$JS.API.STREAM.MSG.GET.ALL", {"seq": seq})["message"] for seq in (1, 2, 3)]
    ids = [base64.b64decode(m["hdrs"]).decode().split("Nats-Msg-Id: ")[1].split("\r\n")[0] for m in stored]
    assert all(re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", i) for i in ids)
    halves = [half for i in ids for half in i.split("-")]
    assert len(set(halves)) == 6, f"ids of one lane have something in common: {ids}"
    for header in (f"Nats-Msg-Id={ids[0]}", "nats-msg-id=x"):
        rejected(d.publish("-m", "evil", "-H", header, topic="seen.t"), 65283, "Nats-Msg-Id")
    rejected(d.publish("-m", "evil", topic="_INBOX.a.b"), 65281, "_INBOX.")
    client.close()


def test_subscriber_cannot_answer_what_it_does_not_see(daemon, server):
    """Reply subjects of one subject's messages do not tell those of another's on the same link."""
    server.stream("ALL", ["seen.>"])
    subscriber = Subscriber(server, "seen.>")
    d = daemon(nats_pool([server]))
    assert d.publish("-m", "a", topic="seen.t").returncode == 0
    assert d.publish("-m", "b", topic="seen.t").returncode == 0
    first, second = (message[1].decode() for message in subscriber.wait(2))
    assert first.startswith("_INBOX.") and second.startswith("_INBOX.")
    inbox, tokens = first.rsplit(".", 1)[0], [reply.rsplit(".", 1)[1] for reply in (first, second)]
    assert second.startswith(inbox) and tokens[0][:16] != tokens[1][:16]


class TlsFirstServer:
    """As nats-server with handshake_first: true (2.10.4 and later): TLS, then INFO. Stores whatever is published."""

    def __init__(self, identity):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(identity.cert, identity.key)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.bodies = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            threading.Thread(target=self._try_to_serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _try_to_serve(self, connection):
        try:
            with self.context.wrap_socket(connection, server_side=True) as secured:
                self._serve(secured)
        except OSError:
            pass

    def _serve(self, connection):
        connection.sendall(b'INFO {"headers":true,"jetstream":true,"tls_required":true}\r\n')
        stream = connection.makefile("rb")
        while (line := stream.readline()):
            words = line.split()
            if words[0] == b"PING":
                connection.sendall(b"PONG\r\n")
            elif words[0] == b"HPUB":
                self.bodies.append(stream.read(int(words[4]) + 2)[int(words[3]):-2])
                connection.sendall(b'MSG %s 1 23\r\n{"stream":"S", "seq":%d}\r\n' % (words[2], len(self.bodies)))


@pytest.mark.parametrize("first", [True, False])
def test_tls_begins_before_the_servers_first_words(daemon, authority, identity, first):
    server = TlsFirstServer(identity)
    d = daemon(nats_pool([server.address], {"handshake_first": first}, tls={"ca_file": authority.cert},
                         health={"connect_timeout_ms": 500}), ready=first)
    if not first:
        wait_for(lambda: "no end of handshake" in str(d.rows("brokers")), lambda: f"why: {d.rows('brokers')}")
        return
    assert d.publish("-m", "secured", topic="t").returncode == 0
    assert server.bodies == [b"secured"]
