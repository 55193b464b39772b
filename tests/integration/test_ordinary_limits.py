"""Signals, limits and circumstances that any host or container may have: none of them ends the daemon or loses a
message; a resource that runs out is refused with a reason."""

import fcntl
import os
import resource
import shutil
import signal

import pytest

import tidegate_lib as tide
from harness import SANITIZED, Daemon, Process, Sink, have, need_localhost, pool, program, wait_for

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer's library cannot be loaded into Python")


def limited(*limits, user=None):
    """For a daemon's preexec: limits are (which, bytes or count)."""
    def apply():
        for which, value in limits:
            resource.setrlimit(which, (value, value))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if user is not None:
            os.setgid(user)
            os.setuid(user)
    return apply


def delivers(d, ring_bytes=16384):
    client = tide.Client(d.socket)
    try:
        return client.lane(ring_bytes=ring_bytes).publish_sync(b"x").name
    finally:
        client.close()


# ---- signals ----

MEANINGLESS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
               signal.SIGXCPU]


@pytest.mark.parametrize("number", MEANINGLESS, ids=lambda number: number.name)
def test_signal_without_a_meaning_is_logged(daemon, sink, number):
    d = daemon(pool([sink]))
    d.process.popen.send_signal(number)
    wait_for(lambda: f"event=signal_ignored signal={number.name}" in d.process.text() or not d.process.alive(),
             "the daemon to say so")
    assert d.process.alive()
    assert "delivered=1" in d.publish("-m", "x").stderr


def test_signals_that_stand_for_errors_are_ignored(daemon, sink):
    d = daemon(pool([sink]))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU, signal.SIGTTIN, signal.SIGRTMIN, signal.SIGRTMAX):
        d.process.popen.send_signal(number)
    assert "delivered=1" in d.publish("-m", "x").stderr
    assert d.process.state() in "SR"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT], ids=lambda number: number.name)
def test_signal_to_stop_drains(box, daemon, number):
    """Messages in flight are still answered."""
    d = daemon(pool([Sink(box, options=["--ack-delay", "1500"]).start()]))
    client = tide.Client(d.socket)
    lane = client.lane()
    lane.publish(b"x", tag=1)
    wait_for(lambda: d.links()[0]["outstanding"] == 1, "the message to be under way")
    d.process.popen.send_signal(number)
    wait_for(lambda: f"event=draining signal={number.name}" in d.process.text() or not d.process.alive(), "draining")
    assert [c.name for c in lane.collect(1, 20000)] == ["delivered"]
    assert d.process.wait() == 0
    assert "event=stopped status=0" in d.process.text()
    client.close()


def test_blocked_signals_of_the_parent_are_unblocked(box, sink):
    d = Daemon(box, [pool([sink])]).start(
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2]))
    assert d.stop() == 0


# ---- limits ----

@root
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_no_threads_are_to_be_had(box, sink, name):
    need_localhost()
    box.path.chmod(0o777)
    for folder in list(box.path.parents)[:3]:
        folder.chmod(folder.stat().st_mode | 0o755)
    d = Daemon(box, [pool([f"{name}:{sink.port}"])])
    d.config.chmod(0o644)
    d.start(preexec_fn=limited((resource.RLIMIT_NPROC, 1), user=54321))
    assert "event=no_thread" in d.process.text()
    for ring in (16384, 1 << 20, 1 << 20, 16 << 20):
        assert delivers(d, ring) == "delivered"
    assert d.stop() == 0


def test_file_size_limit_refuses_large_lanes(box, sink):
    """A lane's memory is a file to the kernel: its size is refused in words, smaller ones go on."""
    d = Daemon(box, [pool([sink])]).start(preexec_fn=limited((resource.RLIMIT_FSIZE, 64 << 10)))
    with pytest.raises(tide.TideError) as refused:
        delivers(d, 16 << 20)
    assert "RLIMIT_FSIZE" in str(refused.value) and "65536" in str(refused.value), str(refused.value)
    assert delivers(d) == "delivered"
    assert d.stop() == 0


def test_address_space_limit_refuses_large_lanes(box, sink):
    d = Daemon(box, [pool([sink])]).start(preexec_fn=limited((resource.RLIMIT_AS, 256 << 20)))
    with pytest.raises(tide.TideError) as refused:
        client = tide.Client(d.socket)
        for _ in range(32):
            client.lane(ring_bytes=16 << 20)
    assert "memory" in str(refused.value).lower(), str(refused.value)
    client.close()
    d.wait_no_lanes()
    assert delivers(d) == "delivered"
    assert d.stop() == 0


@pytest.mark.parametrize("count", range(4, 40, 4))
def test_few_descriptors_end_the_start_in_words_or_serve(box, sink, count):
    d = Daemon(box, [pool([sink])])
    d.launch(preexec_fn=limited((resource.RLIMIT_NOFILE, count)))
    wait_for(lambda: not d.process.alive() or d.answers(), "an end or an answer")
    if d.process.alive():
        assert d.stop() == 0
        return
    assert d.process.wait() in (1, 2), d.process.text()
    assert d.process.text().strip(), "it ended without a word"


def test_small_stack_is_enough(box, sink):
    d = Daemon(box, [pool([sink])]).start(preexec_fn=limited((resource.RLIMIT_STACK, 256 << 10)))
    assert delivers(d, 1 << 20) == "delivered"
    assert d.stop() == 0


# ---- circumstances ----

def test_log_that_is_not_read_does_not_stop_the_loop(box, sink):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    d = Daemon(box, [pool([sink])])
    d.starts += 1
    d.process = Process(box, "silent", ["bash", "-c", f'exec "$0" "$@" 2>&{writing}', program("tidegated"), "-c", d.config,
                                            "--log-level", "debug"], pass_fds=[writing])
    os.close(writing)
    wait_for(d.answers, "the daemon to answer")
    d.wait_ready()
    # Far more lines than the pipe takes: of each client one, and of its lane.
    for _ in range(60):
        assert "delivered=1" in d.publish("-m", "x").stderr
    assert "delivered=1" in d.publish("-m", "x").stderr
    assert d.stop() == 0
    os.close(reading)


def test_closed_standard_descriptors(box, sink):
    d = Daemon(box, [pool([sink])])
    d.starts += 1
    d.process = Process(box, "closed", ["sh", "-c", 'exec "$0" "$@" 0<&- 1>&- 2>&-', program("tidegated"), "-c", d.config])
    wait_for(d.answers, "the daemon to answer")
    d.wait_ready()
    assert "delivered=1" in d.publish("-m", "x").stderr
    assert d.stop() == 0


@root
@pytest.mark.skipif(not have("unshare"), reason="needs unshare")
def test_read_only_or_missing_folder_for_the_socket_is_said(box, sink):
    folder = box.path / "run"
    folder.mkdir()
    d = Daemon(box, [pool([sink])], socket=folder / "a" / "b" / "s.sock")
    d.launch()
    assert d.process.wait() == 1
    assert "event=listen_failed" in d.process.text() and "No such file or directory" in d.process.text()
    script = box.path / "read-only"
    script.write_text('#!/bin/sh\nif [ "$IN_RO" != 1 ]; then IN_RO=1 exec unshare -m "$0" "$@"; fi\n'
                      f'mount -t tmpfs -o ro none {folder} && exec {program("tidegated")} "$@"\n')
    script.chmod(0o755)
    d = Daemon(box, [pool([sink])], name="ro", socket=folder / "s.sock")
    d.launch(command=script)
    assert d.process.wait() == 1
    assert "event=listen_failed" in d.process.text() and "Read-only file system" in d.process.text()


@root
@pytest.mark.skipif(not have("unshare"), reason="needs unshare")
def test_without_proc(box, sink):
    script = box.path / "without-proc"
    script.write_text('#!/bin/sh\nif [ "$IN_NP" != 1 ]; then IN_NP=1 exec unshare -m "$0" "$@"; fi\n'
                      f'mount -t tmpfs none /proc && exec {program("tidegated")} "$@"\n')
    script.chmod(0o755)
    d = Daemon(box, [pool([sink])]).start(command=script)
    # The daemon cannot give its answers to a client for reading alone: lanes are refused, and it goes on.
    with pytest.raises(tide.TideError) as refused:
        delivers(d, 1 << 20)
    assert "/proc" in str(refused.value), str(refused.value)
    # The new binary's path cannot be found out.
    d.process.popen.send_signal(signal.SIGUSR2)
    wait_for(lambda: "event=upgrade_failed" in d.process.text(), "the upgrade to be refused")
    assert d.stop() == 0


# ---- sockets that are gone ----

@pytest.mark.parametrize("how", ["file", "folder"])
def test_removed_sockets_are_made_anew(box, sink, how):
    folder = box.path / "run"
    folder.mkdir()
    d = Daemon(box, [pool([sink])], socket=folder / "s.sock", admin=folder / "a.sock")
    d.socket, d.admin = folder / "s.sock", folder / "a.sock"
    d.start()
    client = tide.Client(d.socket)
    lane = client.lane()
    assert lane.publish_sync(b"x").name == "delivered"
    if how == "file":
        d.socket.unlink()
        d.admin.unlink()
    else:
        shutil.rmtree(folder)
    assert lane.publish_sync(b"x").name == "delivered"
    wait_for(d.answers, "the admin socket")
    wait_for(d.socket.exists, "the control socket")
    assert "delivered=1" in d.publish("-m", "x").stderr
    assert lane.publish_sync(b"x").name == "delivered"
    client.close()
    text = d.process.text()
    assert text.count("event=socket_lost") == 2 and text.count("event=socket_made_anew") == 2, text
    # And once more, in a daemon that has taken the sockets over.
    old = d.process.pid
    d.ctl("upgrade")
    wait_for(lambda: d.ctl("status")["status"]["pid"] != old, "the new daemon")
    d.socket.unlink()
    wait_for(d.socket.exists, "the control socket of the new daemon")
    os.kill(d.ctl("status")["status"]["pid"], signal.SIGTERM)
    wait_for(lambda: not d.socket.exists(), "the socket's end")


def test_socket_of_another_daemon_is_left_alone(box, sink):
    d = Daemon(box, [pool([sink])]).start()
    d.socket.unlink()
    d.admin.unlink()
    other = Daemon(box, [pool([sink])], name="other", socket=d.socket, admin=d.admin)
    other.socket, other.admin = d.socket, d.admin
    # Before the first has looked, or it has made its own anew and the other is refused: then it is not the case in hand.
    other.launch()
    wait_for(lambda: "event=socket_lost" in d.process.text(), "the first to notice")
    if "another process listens" not in d.process.text():
        pytest.skip("the first daemon was faster")
    assert d.stop() == 0
    assert "delivered=1" in other.publish("-m", "x").stderr
    assert other.stop() == 0


# ---- process 1 ----

@root
@pytest.mark.skipif(not have("unshare"), reason="needs unshare")
def test_upgrade_as_process_1_is_refused_in_words(box, sink):
    d = Daemon(box, [pool([sink])])
    script = box.path / "container"
    script.write_text(f'#!/bin/sh\nexec unshare -pf --kill-child {program("tidegated")} "$@"\n')
    script.chmod(0o755)
    d.start(command=script)
    result = box.run(program("tidegatectl"), "-s", d.admin, "upgrade")
    assert result.returncode != 0
    assert "process 1 of its container" in result.stdout + result.stderr
    assert "delivered=1" in d.publish("-m", "x").stderr
    assert d.process.alive()
