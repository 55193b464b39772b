"""TLS files that are renewed under a running daemon: the next connection uses them, and what cannot be
used leaves those before it in force, which the log says. The broker is asked whom it sees."""

import os
import re

import pytest

from harness import wait_for
from test_failover import FAST
from test_tls import tls_pool, wait_why
from tls import TlsMosquitto, TlsSink


class Installed:
    """A certificate and its key where a program looks for them, to be replaced while it runs."""

    def __init__(self, folder, name, identity):
        self.cert = folder / f"{name}.pem"
        self.key = folder / f"{name}.key"
        self.replace(identity)

    def replace(self, identity):
        put(self.key, identity.key.read_bytes())
        put(self.cert, identity.cert.read_bytes())


def put(path, content, mode=0o600):
    """Another file takes the place of this one at once."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.rename(path)


def seen(broker):
    """mosquitto's log of clients with a certificate: their ids and the name in it."""
    return re.findall(r" as (tidegate-\S+) \(p\d, c\d, k\d+, u'([^']*)'\)", broker.process.text())


def reconnect(box, d, broker):
    """mosquitto drops the link and keeps running, and with it the keys for resuming sessions."""
    connects = d.links()[0]["connects"]
    names = len(seen(broker))
    result = box.run("mosquitto_pub", "-h", "127.0.0.1", "-p", broker.port, "-i", seen(broker)[-1][0], "-t", "t", "-n")
    assert result.returncode == 0, result.stderr
    wait_for(lambda: d.links()[0]["connects"] > connects, "another connection")
    d.wait_ready(broker)
    wait_for(lambda: len(seen(broker)) > names, "it in the broker's log")
    return seen(broker)[-1][1]


def failed_renewals(d):
    return [line for line in d.process.text().splitlines() if "event=tls_renewal_failed" in line]


@pytest.fixture
def asking(box, authority, identity):
    """A mosquitto that wants a certificate and takes the name in it for the user's."""
    return TlsMosquitto(box, authority, identity, lines=["require_certificate true", "use_identity_as_username true"]).start()


@pytest.fixture
def client(box, authority):
    return Installed(box.path, "client", authority.issue("first", names=None))


def test_the_broker_sees_the_renewed_certificate(box, daemon, authority, asking, client):
    d = daemon(tls_pool([asking], authority, tls={"cert_file": client.cert, "key_file": client.key}, **FAST))
    assert seen(asking)[-1][1] == "first"
    client.replace(authority.issue("second", names=None))
    # A connection that exists keeps what it has; nothing is read for its sake.
    assert d.publish("-m", "x").returncode == 0
    assert d.links()[0]["connects"] == 1 and "tls_renewed" not in d.process.text()
    assert reconnect(box, d, asking) == "second"
    assert d.process.text().count("event=tls_renewed pool=events") == 1
    # So does a broker that has forgotten all.
    client.replace(authority.issue("third", names=None))
    asking.kill()
    d.wait_not_ready(asking)
    asking.start()
    d.wait_ready(asking)
    wait_for(lambda: seen(asking), "it in the broker's log")
    assert seen(asking)[-1][1] == "third"
    assert d.publish("-m", "x").returncode == 0
    assert not failed_renewals(d)


def garbage(client, other):
    put(client.cert, b"no certificate")
    return "cert_file", f"{client.cert} is no certificate chain: nothing of the kind in PEM form is in it"


def halfway(client, other):
    put(client.cert, other.cert.read_bytes())
    return "key_file", f"{client.key} is not the key of the certificate in {client.cert}"


def gone(client, other):
    client.key.unlink()
    return "key_file", f"{client.key} is no private key: No such file or directory"


def open_to_all(client, other):
    put(client.key, client.key.read_bytes(), 0o644)
    return "key_file", f"{client.key} has mode 0644, which lets every user at it: no rights for others are allowed"


def pipe(client, other):
    """Whose opening would wait for a writer for ever."""
    client.key.unlink()
    os.mkfifo(client.key, 0o600)
    return "key_file", f"{client.key} is not a regular file"


@pytest.mark.parametrize("spoil", [garbage, halfway, gone, open_to_all, pipe])
def test_a_certificate_that_cannot_be_used_leaves_the_old_one_in_force(box, daemon, authority, asking, client, spoil):
    d = daemon(tls_pool([asking], authority, tls={"cert_file": client.cert, "key_file": client.key}, **FAST))
    good = authority.issue("second", names=None)
    key, cause = spoil(client, good)
    for _ in range(2):
        assert reconnect(box, d, asking) == "first"
        assert d.publish("-m", "x").returncode == 0
        failed, = failed_renewals(d)  # said once, however many connect
        assert f"pool=events key={key}" in failed and cause in failed, failed
    client.replace(good)
    assert reconnect(box, d, asking) == "second"
    assert "event=tls_renewed" in d.process.text()


def test_renewed_ca_must_have_signed_the_broker(box, daemon, authority, stranger):
    ca = box.path / "trusted.pem"
    put(ca, authority.cert.read_bytes())
    files = Installed(box.path, "broker", authority.issue())
    broker = TlsMosquitto(box, authority, files).start()
    d = daemon(tls_pool([broker], authority, tls={"ca_file": ca}, **FAST))

    def restart(identity=None):
        broker.kill()
        d.wait_not_ready(broker)
        if identity:
            files.replace(identity)
        broker.start()

    # A file that is no list of certificates changes nothing.
    put(ca, b"no certificate")
    restart()
    d.wait_ready(broker)
    failed, = failed_renewals(d)
    assert f"key=ca_file cause=\"{ca} is no list of certificates: " in failed, failed
    # Another CA, and the broker's certificate is still by the one before.
    put(ca, stranger.cert.read_bytes())
    restart()
    wait_why(d, f'the certificate of "broker" is by "Test CA", a CA unknown to {ca}')
    assert "event=tls_renewed pool=events" in d.process.text()
    # And by the new one.
    restart(stranger.issue())
    d.wait_ready(broker)
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.sanitizers
def test_renewal_lets_a_refused_client_in(box, daemon, authority, stranger, identity):
    """The client's certificate was by a CA the broker does not know; it is renewed on disk."""
    sink = TlsSink(box, identity, clients=authority).start()
    files = Installed(box.path, "client", stranger.issue("client", names=None))
    d = daemon(tls_pool([sink], authority, tls={"cert_file": files.cert, "key_file": files.key},
                        breaker={"retry_max_ms": 500}), ready=False)
    wait_why(d, "alert 48")
    files.replace(authority.issue("client", names=None))
    d.wait_ready(sink)
    assert "event=tls_renewed" in d.process.text()
    assert d.publish("-m", "x").returncode == 0
