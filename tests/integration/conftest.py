"""Fixtures. As root each session has its own network, so no port is ever taken."""

import os
import signal
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import harness  # noqa: E402
import harness_amqp  # noqa: E402
from tls import Authority  # noqa: E402

# A shell that starts the suite in the background ignores SIGINT, and programs inherit that: those that the tests end
# with SIGINT would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)

OWN_NETWORK = os.geteuid() == 0 and harness.own_network()


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitizers: also run with the sanitizer builds and by tools/check --quick")
    config.addinivalue_line("markers", "long: takes more than half a minute")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    report = (yield).get_result()
    if report.when == "call" and report.failed and "box" in getattr(item, "funcargs", {}):
        for name, text in item.funcargs["box"].logs():
            report.sections.append((f"log of {name}", text[-3000:]))


@pytest.fixture
def box(tmp_path):
    box = harness.Box(tmp_path)
    yield box
    box.fini()
    # A sanitizer's report is in the log of its process, which the test may not have read.
    for name, text in box.logs():
        for words in ("ERROR: AddressSanitizer", "runtime error:", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer"):
            assert words not in text, f"{name}: {text[-4000:]}"


@pytest.fixture
def mosquitto(box):
    return harness.Mosquitto(box).start()


@pytest.fixture
def sink(box):
    return harness.Sink(box).start()


@pytest.fixture
def network():
    if not OWN_NETWORK or not harness.have("nft"):
        pytest.skip("needs root, for a network namespace of its own, and nft")
    network = harness.Network()
    yield network
    network.fini()


@pytest.fixture(scope="session")
def secured_rabbits(tmp_path_factory):
    if not harness_amqp.available():
        pytest.skip("rabbitmq-server is not installed")
    box = harness.Box(tmp_path_factory.mktemp("secured"))
    try:
        yield harness_amqp.SecuredRabbit(box, Authority(box.path / "ca")).start()
    finally:
        box.fini()


@pytest.fixture
def secured_rabbit(secured_rabbits):
    """The session's RabbitMQ with TLS and STOMP, started when the first test wants it."""
    if not secured_rabbits.process.alive():
        secured_rabbits.start()
    return secured_rabbits


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "stranger", "Another CA")


@pytest.fixture(scope="module")
def identity(authority):
    return authority.issue()


@pytest.fixture
def daemon(box):
    """daemon(pool, …, setting=…): a started tidegated."""
    def start(*pools, ready=True, **settings):
        return harness.Daemon(box, list(pools), **settings).start(ready=ready)
    return start
