"""The daemon as an administrator meets it: configuration errors, start, stop, limits."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess

import pytest

from harness import BUILD, Daemon, Process, Sink, libconfig_file, merged, pool, program, wait_for
from load import Producer, check_all_arrived

GOOD = {"socket": "/tmp/x.sock", "admin": "/tmp/x.admin", "pools": [pool(["127.0.0.1:1883"])]}


def check(box, text):
    file = box.path / "checked.conf"
    file.write_text(text if isinstance(text, str) else libconfig_file(text))
    return box.run(program("tidegated"), "-c", file, "--check")


def test_good_configuration_passes(box):
    result = check(box, GOOD)
    assert result.returncode == 0, result.stderr


@pytest.mark.sanitizers
@pytest.mark.parametrize("change, key, allowed", [
    ({"sockte": "/tmp/y"}, "sockte", "socket"),
    ({"limits": {"lanes": 0}}, "limits.lanes", "1"),
    ({"limits": {"lanes": "many"}}, "limits.lanes", "number"),
    ({"idle": {"spin_us": -1}}, "idle.spin_us", "0"),
    ({"pools": []}, "pools", ""),
    ({"pools": [pool(["127.0.0.1:1883"], balance="fair")]}, "balance", "weighted"),
    ({"pools": [pool(["127.0.0.1:1883"], protocol="smoke")]}, "protocol", "mqtt"),
    ({"pools": [pool(["127.0.0.1:99999"])]}, "address", "65535"),
    ({"pools": [pool(["127.0.0.1:1883"], mqtt={"qos": 2})]}, "mqtt.qos", "1"),
    ({"pools": [pool(["127.0.0.1:1883"], mqtt={"qoz": 1})]}, "qoz", "qos"),
    ({"pools": [pool(["127.0.0.1:1883"], watermarks={"high": 4096, "low": 8192})]}, "watermarks", "high"),
    ({"pools": [pool(["127.0.0.1:1883"], mqtt={"password_file": "/nonexistent/pw", "username": "u"})]},
     "password_file", "/nonexistent/pw"),
    ({"pools": [pool(["127.0.0.1:1"]), pool(["127.0.0.1:2"])]}, "name", "events"),
])
def test_wrong_configuration_names_file_line_key_and_what_is_allowed(box, change, key, allowed):
    result = check(box, merged(GOOD, change))
    assert result.returncode == 2, result.stderr
    assert re.search(r"checked\.conf:\d+", result.stderr), result.stderr
    assert key in result.stderr and allowed in result.stderr, result.stderr


def test_configuration_that_is_no_configuration(box):
    result = check(box, "pools = ( { name = ;")
    assert result.returncode == 2 and re.search(r"checked\.conf:1", result.stderr), result.stderr
    result = box.run(program("tidegated"), "-c", box.path / "none.conf", "--check")
    assert result.returncode == 2 and "none.conf" in result.stderr


def test_version_and_wrong_options(box):
    result = box.run(program("tidegated"), "--version")
    assert result.returncode == 0 and re.search(r"\d+\.\d+\.\d+", result.stdout)
    result = box.run(program("tidegated"), "--nonsense")
    assert result.returncode == 2 and "--nonsense" in result.stderr


@pytest.mark.sanitizers
def test_sigterm_delivers_what_is_accepted_and_exits(box, daemon):
    sink = Sink(box, options=["--ack-delay", "200"]).start()
    d = daemon(pool([sink]))
    producer = Producer(box, d, count=3000, batch=64, ring=1 << 20)
    producer.wait_accepted(500)
    producer.process.kill()
    assert d.stop() == 0
    check_all_arrived([producer], sink)
    assert not d.socket.exists() and not d.admin.exists()


@pytest.mark.sanitizers
def test_sigterm_with_a_dead_broker_ends_within_its_limit(box, daemon):
    sink = Sink(box)
    d = daemon(pool([sink]), ready=False, drain_timeout_ms=500)
    producer = Producer(box, d, count=10)
    producer.wait_accepted(10)
    producer.process.kill()
    d.process.stop(10)
    assert "drain" in d.process.text().lower()


def test_second_daemon_on_one_socket_is_refused_and_the_first_goes_on(box, daemon):
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    result = box.run(program("tidegated"), "-c", d.config, deadline_s=20)
    assert result.returncode not in (0, 2)
    assert str(d.socket) in result.stderr or str(d.admin) in result.stderr, result.stderr
    assert d.publish("-m", "still here").returncode == 0


def test_stale_socket_of_a_killed_daemon_is_taken_over(box, daemon):
    sink = Sink(box).start()
    d = daemon(pool([sink]))
    d.process.kill()
    assert d.socket.exists()
    d.start()
    assert d.publish("-m", "again").returncode == 0


def test_socket_of_a_daemon_that_hangs_is_left_alone(box):
    """All the connections it can have wait for it: the new one must not wait with them."""
    sink = Sink(box).start()
    d = Daemon(box, [pool([sink])])
    with contextlib.ExitStack() as held:
        hung = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        hung.bind(str(d.socket))
        hung.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                s = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                s.setblocking(False)
                s.connect(str(d.socket))
        result = box.run(program("tidegated"), "-c", d.config, deadline_s=20)
        assert result.returncode not in (0, 2)
        assert "in use" in result.stderr, result.stderr


def test_daemon_without_standard_descriptors_writes_into_no_socket(box, daemon, sink):
    d = daemon(pool([sink]))
    d.stop()
    d.process = Process(box, "tidegated-bare", ["sh", "-c", f"exec {program('tidegated')} -c {d.config} <&- >&- 2>&-"])
    wait_for(d.answers, "it to answer")
    for fd in range(3):
        assert os.readlink(f"/proc/{d.process.pid}/fd/{fd}") == "/dev/null"
    d.wait_ready()
    assert d.publish("-m", "x").returncode == 0
    assert d.stop() == 0


def test_file_that_is_no_socket_is_left_alone(box):
    sink = Sink(box).start()
    d = Daemon(box, [pool([sink])])
    d.socket.write_text("precious")
    result = box.run(program("tidegated"), "-c", d.config, deadline_s=20)
    assert result.returncode not in (0, 2)
    assert str(d.socket) in result.stderr
    assert d.socket.read_text() == "precious"


def test_unknown_pool_is_named(box, daemon, sink):
    d = daemon(pool([sink]))
    result = d.publish("-m", "x", pool="nowhere")
    assert result.returncode != 0 and "nowhere" in result.stderr


def test_limit_of_lanes_is_an_error_for_the_asking_client(box, daemon, sink):
    d = daemon(pool([sink]), limits={"lanes": 3, "lanes_per_user": 3})
    first = Producer(box, d, number=1, count=10, lanes=3, words=["-L"])
    wait_for(lambda: first.file.state == 4, "the first to be done")
    result = d.publish("-m", "x")
    assert result.returncode != 0 and "3" in result.stderr and "lanes" in result.stderr, result.stderr
    first.process.kill()
    d.wait_no_lanes()
    assert d.publish("-m", "x").returncode == 0


def test_limit_of_ring_bytes_names_both_numbers(box, daemon, sink):
    d = daemon(pool([sink]), limits={"ring_bytes": 65536})
    result = d.publish("--ring", "1048576", "-m", "x")
    assert result.returncode != 0
    assert "65536" in result.stderr.replace(",", "") and "1048576" in result.stderr.replace(",", ""), result.stderr
    assert d.publish("--ring", "16384", "-m", "x").returncode == 0
    # A client that leaves the size to the daemon gets the largest allowed.
    assert Producer(box, d, number=1, count=10).finish() == {"delivered": 10}


def test_ring_of_ones_own_choice_shrinks_to_the_memory_there_is(box, daemon, sink):
    d = daemon(pool([sink]), limits={"memory_bytes": 100000})
    assert Producer(box, d, number=1, count=10).finish() == {"delivered": 10}


def test_descriptor_limit_refuses_the_newcomer_alone(box, sink):
    d = Daemon(box, [pool([sink])])
    d.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    first = Producer(box, d, number=1, count=200000, rate=500)
    first.wait_accepted(50)
    refused = Producer(box, d, number=2, count=1, lanes=64, words=["-L"])
    assert refused.process.wait(20) == 3
    assert refused.process.text()
    at = first.file.completed()
    wait_for(lambda: first.file.completed() > at + 100, "the first to go on")
    d.wait_ready()
    assert d.publish("-m", "x").returncode == 0


@pytest.mark.sanitizers
def test_nonsense_on_the_control_socket_hurts_no_other_client(box, daemon, sink):
    d = daemon(pool([sink]))
    descriptors = d.process.descriptors()
    for junk in (b"", b"x", b"\0" * 64, os.urandom(512), b"\xff" * 4096):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            s.connect(str(d.socket))
            try:
                s.send(junk)
                # Unexpected descriptors must be closed.
                socket.send_fds(s, [os.urandom(32)], [0, 1, 2])
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert d.publish("-m", "x").returncode == 0
    wait_for(lambda: d.process.descriptors() <= descriptors, lambda:
             f"{descriptors} descriptors, {d.process.descriptors()} are open")


def test_idle_daemon_uses_no_cpu(box, daemon, sink):
    """A thousand attached lanes, nothing to publish: a probe each second is all that happens."""
    d = daemon(pool([sink]))
    quiet = [Producer(box, d, number=n, count=1, lanes=50, ring=16384, words=["-L"]) for n in range(20)]
    for producer in quiet:
        wait_for(lambda p=producer: p.file.state == 4, "all lanes to have published")
    wait_for(lambda: d.process.spends(1.0)[0] <= 1, "an idle second", 10)
    ticks, _ = d.process.spends(3.0)
    assert ticks <= 1, "more than 10 ms of CPU in 3 idle seconds"


def test_log_is_one_logfmt_line_each(box, daemon, sink):
    d = daemon(pool([sink]))
    d.publish("-m", "x")
    assert d.stop() == 0
    lines = d.process.text().splitlines()
    assert lines
    for line in lines:
        assert re.match(r'^(\w[\w.]*=("([^"\\]|\\.)*"|[^\s"]*)( |$))+$', line), line


def test_systemd_is_told_when_the_daemon_is_ready(box, sink):
    if "define HAVE_SYSTEMD 1" not in (BUILD / "build_config.h").read_text():
        pytest.skip("built without libsystemd")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        path = box.path / "notify"
        s.bind(str(path))
        s.settimeout(10)
        d = Daemon(box, [pool([sink])])
        d.start(env={**os.environ, "NOTIFY_SOCKET": str(path)})
        assert b"READY=1" in s.recv(4096)


def test_foreground_signals_end_it(box, daemon, sink):
    d = daemon(pool([sink]))
    d.process.popen.send_signal(signal.SIGINT)
    assert d.process.wait(15) == 0
    assert subprocess.run(["test", "-e", d.socket]).returncode != 0
