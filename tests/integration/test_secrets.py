"""A password that was sent to its broker stays in the pool's settings, for the next connection, and nowhere else.
And when it is read: before each connection, so that another in its file needs no restart."""

import contextlib
import os
import re

import pytest

from harness import SANITIZED, Sink, pool, program, secret, wait_for
from test_failover import FAST

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
            with contextlib.suppress(OSError):  # reserved memory has no content yet
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


class Guarded:
    """A sink that wants a password, and a daemon whose file may have another. `file` is the daemon's."""

    def __init__(self, box, daemon, protocol, word="first"):
        self.box = box
        user, key = CREDENTIALS[protocol]
        self.key = f"{protocol}.{key}"
        self.file = secret(box.path / "password", word)
        secret(box.path / "wanted", word)
        self.sink = Sink(box, protocol=protocol, options=["--auth", f"gate:{box.path / 'wanted'}"]).start()
        entry = pool([self.sink], protocol=protocol, **{protocol: {user: "gate", key: self.file}}, **FAST)
        if protocol != "mqtt":
            del entry["mqtt"]
        self.daemon = daemon(entry)

    def restart(self, word):
        """The sink ends, and another takes its place that wants this password."""
        self.sink.kill()
        self.daemon.wait_not_ready(self.sink)
        secret(self.box.path / "wanted", word)
        self.sink.start()

    def said(self, event):
        return [line for line in self.daemon.process.text().splitlines() if f"event={event} " in line]


@pytest.mark.parametrize("protocol", CREDENTIALS)
def test_another_password_in_the_file_is_used_at_the_next_connection(box, daemon, protocol):
    guarded = Guarded(box, daemon, protocol)
    secret(guarded.file, "second\r")  # as an editor of another system ends its lines
    guarded.restart("second")
    guarded.daemon.wait_ready(guarded.sink)
    assert guarded.daemon.publish("-m", "x").returncode == 0
    line, = guarded.said("secret_renewed")
    assert f"pool=events key={guarded.key}" in line
    # In another order: the broker wants the new one first, and refuses until the file has it.
    guarded.restart("third")
    wait_for(lambda: guarded.daemon.links()[0]["failures"] > 1, "the broker to refuse")
    secret(guarded.file, "third")
    guarded.daemon.wait_ready(guarded.sink)
    assert guarded.daemon.publish("-m", "x").returncode == 0
    assert not guarded.said("secret_renewal_failed")


@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps copies of its own")
def test_a_password_that_was_replaced_is_nowhere(box, daemon):
    guarded = Guarded(box, daemon, "redis", PASSWORD.decode())
    other = PASSWORD[::-1]
    secret(guarded.file, other.decode())
    guarded.restart(other.decode())
    guarded.daemon.wait_ready(guarded.sink)
    assert copies(guarded.daemon.process.pid, PASSWORD) == []
    assert len(copies(guarded.daemon.process.pid, other)) == 1


def two_lines(file):
    file.write_text("second\nline\n")
    return f"{file}:2: a second line: a secret is one line"


def control(file):
    file.write_text("se\tcond\n")
    return f"{file}:1: byte 3 is a control character (0x09)"


def empty(file):
    file.write_text("\r\n")
    return f"{file} is empty"


def gone(file):
    file.unlink()
    return f"{file} cannot be read: No such file or directory"


def open_to_all(file):
    file.write_text("second\n")
    file.chmod(0o644)
    return f"{file} has mode 0644, which lets every user at it: no rights for others are allowed (chmod o= {file})"


def pipe(file):
    """Whose opening would wait for a writer for ever."""
    file.unlink()
    os.mkfifo(file, 0o600)
    return f"{file} is not a regular file"


SPOILERS = [two_lines, control, empty, gone, open_to_all, pipe]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_password_that_cannot_be_used_leaves_the_old_one_in_force(box, daemon, spoil):
    guarded = Guarded(box, daemon, "mqtt")
    cause = spoil(guarded.file)
    for _ in range(2):
        guarded.restart("first")
        guarded.daemon.wait_ready(guarded.sink)
        line, = guarded.said("secret_renewal_failed")  # said once, however many connect
        assert f"pool=events key={guarded.key}" in line and cause in line, line
    assert guarded.daemon.publish("-m", "x").returncode == 0
    guarded.file.unlink(missing_ok=True)
    secret(guarded.file, "second")
    guarded.restart("second")
    guarded.daemon.wait_ready(guarded.sink)
    assert len(guarded.said("secret_renewed")) == 1


@pytest.mark.parametrize("spoil", SPOILERS)
def test_check_refuses_a_password_that_cannot_be_used(box, daemon, spoil):
    guarded = Guarded(box, daemon, "mqtt")
    cause = spoil(guarded.file)
    result = box.run(program("tidegated"), "--check", "-c", guarded.daemon.config)
    assert result.returncode != 0
    assert f"mqtt.password_file: {cause}" in result.stderr + result.stdout
