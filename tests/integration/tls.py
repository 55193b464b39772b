"""Certificates of the tests' own, made with the openssl command, and brokers that use them."""

import subprocess

from harness import Mosquitto, Sink

NAMES = "DNS:localhost,DNS:broker.test,IP:127.0.0.1"


def openssl(*words):
    result = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, f"openssl {' '.join(map(str, words))}: {result.stderr}"


class Identity:
    """A certificate and its key."""

    def __init__(self, cert, key):
        self.cert = cert
        self.key = key


class Authority:
    """A CA in a folder."""

    def __init__(self, folder, name="Test CA"):
        self.folder = folder
        folder.mkdir()
        self.cert = folder / "ca.pem"
        self.key = folder / "ca.key"
        self.count = 0
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 30,
                "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.cert)

    def issue(self, subject="broker", names=NAMES, days=30):
        """A certificate by this CA. days < 0: it has expired."""
        self.count += 1
        identity = Identity(self.folder / f"{self.count}.pem", self.folder / f"{self.count}.key")
        request = self.folder / f"{self.count}.csr"
        extensions = self.folder / f"{self.count}.ext"
        extensions.write_text(f"subjectAltName={names}\n" if names else "basicConstraints=CA:FALSE\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={subject}",
                "-keyout", identity.key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial",
                "-days", days, "-extfile", extensions, "-out", identity.cert)
        identity.key.chmod(0o600)
        return identity


def newest_tls(box, version):
    """An environment in which OpenSSL speaks nothing newer: mosquitto's own tls_version is the oldest."""
    settings = box.path / f"openssl-{version}.cnf"
    settings.write_text("openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = rules\n"
                        f"[rules]\nMaxProtocol = TLSv{version}\n")
    return {"OPENSSL_CONF": str(settings)}


class TlsMosquitto(Mosquitto):
    """A mosquitto whose address is a TLS listener; its other port, in the clear, is for subscribers."""

    def __init__(self, box, authority, identity, name="mosquitto", lines=(), environment=None, **options):
        self.tls_port = box.port()
        super().__init__(box, name, lines=[
            f"listener {self.tls_port} 127.0.0.1", f"cafile {authority.cert}", f"certfile {identity.cert}",
            f"keyfile {identity.key}", *lines], **options)
        self.address = f"127.0.0.1:{self.tls_port}"
        self.environment = environment or {}


class TlsSink(Sink):
    """tidegate-sink with TLS. clients: the CA that clients must have a certificate of."""

    def __init__(self, box, identity, name="sink", clients=None, options=(), environment=None, **others):
        words = ["--tls-cert", identity.cert, "--tls-key", identity.key]
        words += ["--tls-ca", clients.cert] if clients else []
        super().__init__(box, name, options=[*map(str, words), *options], **others)
        self.environment = environment or {}
