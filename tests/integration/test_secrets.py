"""Where a password is, once it has done its work: in the pool's settings, for the next connection, and nowhere else."""

import contextlib
import re

import pytest

from harness import SANITIZED, Sink, pool, secret

PASSWORD = b"Ebb-and-flow-7c41f0-of-the-tide"
# Settings of a user whose secret is in a file, by protocol.
CREDENTIALS = {
    "mqtt": ("username", "password_file"),
    "nats": ("username", "password_file"),
    "amqp": ("username", "password_file"),
    "redis": ("username", "password_file"),
    "stomp": ("login", "passcode_file"),
}


def copies(pid, word):
    """[(mapping, what is around it)] of every copy in a process's memory."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            first, last, rights, name = re.match(r"(\w+)-(\w+) (\S+) \S+ \S+ \S+\s*(.*)", line).groups()
            if not rights.startswith("rw") or name.startswith("[v"):
                continue
            with contextlib.suppress(OSError):  # what is kept for later is not there yet
                memory.seek(int(first, 16))
                data = memory.read(int(last, 16) - int(first, 16))
                found += [(name, data[max(0, at.start() - 24):at.end() + 8]) for at in re.finditer(re.escape(word), data)]
    return found


@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps copies of its own")
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
@pytest.mark.parametrize("protocol", CREDENTIALS)
def test_password_is_in_memory_once(box, daemon, authority, identity, tmp_path, protocol, tls):
    """Not where its file was read, nor where the first bytes to the broker were made, encrypted or sent from, nor among
    registers that were saved on the way."""
    user, file = CREDENTIALS[protocol]
    settings = {user: "gate", file: secret(tmp_path / "password", PASSWORD.decode())}
    certificate = ["--tls-cert", identity.cert, "--tls-key", identity.key] if tls else []
    sink = Sink(box, protocol=protocol, options=certificate).start()
    entry = pool([sink], protocol=protocol, **{protocol: settings})
    if protocol != "mqtt":
        del entry["mqtt"]
    if tls:
        entry["tls"] = {"ca_file": authority.cert}
    d = daemon(entry)
    assert d.publish("-m", "x").returncode == 0
    found = copies(d.process.pid, PASSWORD)
    assert len(found) == 1, found
    assert PASSWORD.decode() not in d.process.text()
