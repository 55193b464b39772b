"""Refusals of real brokers, by protocol: the exact completion, and the reason that a pool reports.

                   mosquitto       nats-server      RabbitMQ           redis-server      ActiveMQ      RabbitMQ, STOMP
 missing stream,   a success (16)  503              404, 312           40                made          65286
  exchange, queue                  nats/missing     amqp/refused       redis/missing                   stomp/missing
 wrong type        -               -                403 (internal)     2                 -             -
                                                    amqp/refused       redis/wrong_type
 no permission     135             65285            403                3                 65285         65286
                   mqtt/says_no    nats/forbidden   amqp/permission    redis/permission  stomp/rights  stomp/missing
 body too large    149, 65282      65282            406, then 65282    65282             65286         -
                   mqtt/larger,    nats/larger      amqp/too_large     here              stomp/larger
                   here
 invalid topic     65281           65281            65281              65281             65281         65281
                   mqtt/bad_topic  nats/bad_subject amqp/topic         here              stomp/invalid stomp/invalid
 wrong password    expired, with the reason in `pools` and `why`, tried again at the longest pause:
                   here, and in each protocol's own file
 expired certificate, wrong host name
                   the same: here, for all of them

Each word with a slash is a test: the file test_<first>.py, the function with <second> in its name.
"""

import re
import time

import pytest

import harness_stomp
from harness import Mosquitto, have, merged, pool, program, said, secret, wait_for
from harness_nats import NatsServer
from harness_redis import Connection, Redis, StreamArrivals
from load import Producer, check_all_arrived
from tls import TlsMosquitto, openssl

RETRY_MAX_MS = 600
BACKOFF = {"breaker": {"retry_ms": 20, "retry_max_ms": RETRY_MAX_MS}}
PASSWORD = "tide and gate"


def entry(protocol, address, **changes):
    made = pool([address], protocol=protocol, **merged({protocol: {}}, changes))
    if protocol != "mqtt":
        del made["mqtt"]
    return made


# ---- one real broker of each protocol, with TLS and a certificate of the test's choice, with a user "gate" ----


class Subject:
    """A broker under test. start(identity) starts it (anew), with this certificate; topic: one that gate may use."""
    topic = "t"

    def __init__(self, box, authority):
        self.box = box
        self.authority = authority
        self.broker = None
        self.count = 0

    def name(self):
        self.count += 1
        return f"{self.protocol}{self.count}"

    def stop(self):
        if self.broker is not None:
            self.broker.kill()

    def pool(self, password=PASSWORD, **changes):
        file = secret(self.box.path / "passwords", password)
        keys = {"stomp": ("login", "passcode_file")}.get(self.protocol, ("username", "password_file"))
        return entry(self.protocol, self.address, **merged(
            {self.protocol: {keys[0]: "gate", keys[1]: file}, "tls": {"ca_file": self.authority.cert}, **BACKOFF}, changes))


class OfMqtt(Subject):
    protocol = "mqtt"
    refusal = "not authorized"
    available = staticmethod(lambda: have("mosquitto"))

    def start(self, identity):
        self.stop()
        self.broker = TlsMosquitto(self.box, self.authority, identity, self.name(), users={"gate": PASSWORD},
                                   port=self.broker and self.broker.port)
        if self.count > 1:  # at the address it had
            config = self.broker.config.read_text().replace(str(self.broker.tls_port), self.address.rpartition(":")[2])
            self.broker.config.write_text(config)
        else:
            self.address = self.broker.address
        self.broker.start()


class OfNats(Subject):
    protocol = "nats"
    refusal = "Authorization Violation"
    available = staticmethod(lambda: have("nats-server"))

    def start(self, identity):
        self.stop()
        self.broker = NatsServer(self.box, self.name(), port=self.broker and self.broker.port, lines=[
            f'tls {{ cert_file: "{identity.cert}", key_file: "{identity.key}" }}',
            f'authorization {{ user: gate, password: "{PASSWORD}" }}']).start()
        self.address = self.broker.address

    def pool(self, *words, **changes):
        return super().pool(*words, **merged({"nats": {"jetstream": False}}, changes))


class OfRedis(Subject):
    protocol = "redis"
    refusal = "WRONGPASS"
    available = staticmethod(lambda: have("redis-server"))

    def start(self, identity):
        self.stop()
        port = self.address.rpartition(":")[2] if self.broker else self.box.port()
        self.address = f"127.0.0.1:{port}"
        # A password in the configuration has no blank in it; its hash has none.
        self.broker = Redis(self.box, self.name(), lines=[
            f"tls-port {port}", f"tls-cert-file {identity.cert}", f"tls-key-file {identity.key}",
            f"tls-ca-cert-file {self.authority.cert}", "tls-auth-clients no",
            f"user gate on #{sha256(PASSWORD)} ~* &* +@all"]).start()


class OfAmqp(Subject):
    protocol = "amqp"
    refusal = "ACCESS_REFUSED"
    topic = "refusals"

    def __init__(self, box, rabbit):
        super().__init__(box, rabbit.authority)
        self.broker = rabbit
        self.address = rabbit.tls

    def start(self, identity):
        self.broker.install(identity)
        if "gate" not in self.broker.users:
            self.broker.add_user("gate", PASSWORD)
            self.broker.declare(("queue", "refusals"))


class OfRabbitStomp(OfAmqp):
    protocol = "stomp"
    refusal = "Access refused for user 'gate'"
    topic = "/queue/refusals"

    def __init__(self, box, rabbit):
        super().__init__(box, rabbit)
        self.address = rabbit.stomp_tls

    def pool(self, *words, **changes):
        return super().pool(*words, **merged({"stomp": {"vhost": "/"}}, changes))


class OfActiveMQ(Subject):
    protocol = "stomp"
    refusal = "password is invalid"
    topic = "/queue/open.t"
    available = staticmethod(harness_stomp.available)

    def start(self, identity):
        self.stop()
        name = self.name()
        store = self.box.path / f"{name}.p12"
        openssl("pkcs12", "-export", "-in", identity.cert, "-inkey", identity.key, "-out", store, "-passout", "pass:secret")
        self.broker = harness_stomp.ActiveMQ(self.box, name, users={"gate": PASSWORD}, key_store=store,
                                             port=self.broker and self.broker.port).start()
        self.address = self.broker.address


SUBJECTS = {"mosquitto": OfMqtt, "nats-server": OfNats, "rabbitmq": OfAmqp, "redis-server": OfRedis,
            "activemq": OfActiveMQ, "rabbitmq-stomp": OfRabbitStomp}


def sha256(text):
    import hashlib  # pylint: disable=import-outside-toplevel
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(params=SUBJECTS)
def subject(request, box, authority):
    kind = SUBJECTS[request.param]
    if issubclass(kind, OfAmqp):
        rabbit = request.getfixturevalue("secured_rabbit")
        yield kind(box, rabbit)
        rabbit.install(rabbit.authority.issue())
        return
    if not kind.available():
        pytest.skip(f"{request.param} is not installed")
    yield kind(box, authority)


def check_refused(d, subject, words):
    """The pool says why, in `pools`, `brokers` and `why`; its messages wait and expire, and are nothing else;
    it goes on trying, at the longest pause and no faster."""
    wait_for(lambda: words in str(d.rows("pools")[0]["failing"]), lambda: f"{words!r}: {d.rows('pools')}", 20)
    began, before = time.monotonic(), d.rows("brokers")[0]["attempts"]
    assert words in d.rows("brokers")[0]["why"] and words in d.links()[0]["why"]
    assert said(d.publish("--timeout", "400", "-m", "x", topic=subject.topic)) == {"accepted": 1, "expired": 1}
    waiting = d.box.run(program("tidegatectl"), "-s", d.admin, "why").stdout
    listed = d.box.run(program("tidegatectl"), "-s", d.admin, "pools").stdout
    assert words in listed, listed
    assert "events" in waiting, waiting
    wait_for(lambda: d.rows("brokers")[0]["attempts"] >= before + 2, "two attempts more", 30)
    attempts, took_ms = d.rows("brokers")[0]["attempts"] - before, (time.monotonic() - began) * 1000
    # A pause is half to one and a half times the longest, jittered; not the 20 ms after a failed connect.
    assert attempts <= 2 + took_ms / (RETRY_MAX_MS / 2), (attempts, took_ms)
    assert "ready" not in d.link_states()


def test_expired_certificate(daemon, subject):
    subject.start(subject.authority.issue("old", days=-1))
    d = daemon(subject.pool(), ready=False)
    check_refused(d, subject, 'the certificate of "old" has expired: it was valid until 20')
    # Renewed: the pool that went on trying is let in.
    subject.start(subject.authority.issue())
    d.wait_ready(deadline_s=60)
    outcome = {"accepted": 1, "sent" if subject.protocol == "nats" else "delivered": 1}
    assert said(d.publish("-m", "x", topic=subject.topic)) == outcome


def test_wrong_host_name(daemon, subject):
    subject.start(subject.authority.issue(names="DNS:other.test,IP:10.0.0.1"))
    d = daemon(subject.pool(), ready=False)
    check_refused(d, subject, "its certificate is for other.test, 10.0.0.1, not for 127.0.0.1")


def test_wrong_password(daemon, subject):
    subject.start(subject.authority.issue())
    d = daemon(subject.pool("ebb and flow"), ready=False)
    check_refused(d, subject, subject.refusal)
    everything = d.process.text() + str(d.rows("brokers")) + str(d.rows("links"))
    assert "ebb and flow" not in everything and "ebb" not in everything


# ---- cases that no other file has ----


@pytest.mark.parametrize("version", [4, 5])
def test_mosquitto_limits_bodies_by_message_size_limit(box, daemon, version):
    """MQTT 5 says so in the PUBACK. 3.1.1 has no words for it: mosquitto acknowledges and drops. Either way it
    closes the connection behind its answer."""
    broker = Mosquitto(box, lines=["message_size_limit 5000"]).start()
    d = daemon(pool([broker], mqtt={"version": version}))
    (box.path / "large").write_bytes(b"x" * 6000)
    result = d.publish("--whole-file", box.path / "large")
    if version == 5:
        assert said(result) == {"accepted": 1, "rejected": 1} and re.search(r"\b149\b", result.stderr), result.stderr
    else:
        assert said(result) == {"accepted": 1, "delivered": 1}
    assert d.publish("-m", "small").returncode == 0
    assert d.links()[0]["connects"] == 2
    assert "Bad socket read/write" in broker.process.text()


def test_redis_refuses_a_bulk_that_is_too_large(box, daemon):
    """It answers in the message's turn and closes: that one is rejected, what was sent behind it is sent again."""
    redis = Redis(box, lines=["proto-max-bulk-len 1mb"]).start()
    d = daemon(entry("redis", redis.address, **BACKOFF))
    (box.path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    others = Producer(box, d, count=2000, rate=1000)
    others.wait_accepted(100)
    result = d.publish("--whole-file", "--ring", str(4 << 20), box.path / "large", topic="large")
    assert said(result) == {"accepted": 1, "rejected": 1}, result.stderr
    assert "Protocol error: invalid bulk length" in result.stderr and "code 1 " in result.stderr, result.stderr
    assert others.finish() == {"delivered": 2000}
    check_all_arrived([others], StreamArrivals(redis))
    assert redis.length("large") == 0


def test_redis_takes_any_bytes_for_a_key(box, daemon):
    redis = Redis(box).start()
    d = daemon(entry("redis", redis.address))
    topic = "a *\t\r\n{}$5"
    assert d.publish("-m", "x", topic=topic).returncode == 0
    connection = Connection(redis.port)
    assert connection("XLEN", topic) == 1
    connection.close()
