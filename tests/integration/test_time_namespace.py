"""A producer whose monotonic clock is not the daemon's: a container that CRIU restored, or whose runtime set its clock."""

import os
import subprocess

import pytest

from harness import Process, Sink, pool, program, said, wait_for

BEHIND, AHEAD = "-60", "3600"
UNSHARE = ["unshare", "--time", "--fork", "--kill-child"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run([*UNSHARE, "--monotonic", AHEAD, "true"], capture_output=True, check=False).returncode,
    reason="needs root, for a time namespace")


def publish(d, offset, *words):
    return [*UNSHARE, "--monotonic", offset, program("tidegate-pub"), "-s", d.socket, "-p", "events", "-t", "t", *words]


@pytest.mark.parametrize("offset", [BEHIND, AHEAD])
def test_deadline_counts_from_the_publish(box, daemon, offset):
    broker = Sink(box)
    d = daemon(pool([broker], breaker={"retry_ms": 100, "retry_max_ms": 200}), ready=False)
    result = box.run(*publish(d, offset, "--timeout", "1s", "-m", "x"))
    assert said(result) == {"accepted": 1, "expired": 1}
    broker.start()
    d.wait_ready(broker)
    result = box.run(*publish(d, offset, "--timeout", "30s", "-m", "x"))
    assert said(result) == {"accepted": 1, "delivered": 1}


@pytest.mark.parametrize("offset", [BEHIND, AHEAD])
def test_next_daemon_keeps_the_deadline(box, daemon, offset):
    d = daemon(pool([Sink(box)]), ready=False)
    pub = Process(box, "pub", publish(d, offset, "--timeout", "3s", "-m", "x"))
    wait_for(lambda: d.rows("pools")[0]["accepted"] == 1, "the message to wait")
    d.process.kill()
    d.start(ready=False)
    assert pub.wait(30) == 1
    assert "expired=1 " in pub.text(), pub.text()
