"""The fault suite: broker faults on real sockets.

Fixtures are those of tests/integration (a box of processes, a network of the session's own); `story`
adds brokers, load and figures. Every test files its figures, which are shown at the end of the run and
kept as JSON lines in $TG_FAULTS_FIGURES (default: faults.jsonl in the build folder); report.py makes
tables of them.

Most stories wait: for an outage to last, for a detector. With pytest-xdist (-n 3 --dist loadgroup) they
wait at the same time, each worker in its own network; the stories that keep the processors busy form one group
and run one after the other. For figures to quote, run it without xdist on a quiet machine."""

import importlib.util
import os
import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration")]

import harness  # noqa: E402
import report  # noqa: E402
import story as stories  # noqa: E402

# The integration tests' conftest under another name: its fixtures and its hooks are ours too.
_spec = importlib.util.spec_from_file_location("integration_conftest", HERE.parent / "integration" / "conftest.py")
_base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_base)
box, network, pytest_runtest_makereport = _base.box, _base.network, _base.pytest_runtest_makereport
pytest_configure = _base.pytest_configure

FIGURES = pathlib.Path(os.environ.get("TG_FAULTS_FIGURES", harness.BUILD / "faults.jsonl"))


def is_busy(item):
    """Whether the story keeps the processors busy; a pool that is down, or slow because of losses, does not."""
    return ("saturated" in item.name or "cluster" in item.name) and \
        not any(words in item.name for words in ("only_peer", "thirty_percent"))


def pytest_sessionstart(session):
    if not getattr(session.config.option, "collectonly", False) and not hasattr(session.config, "workerinput"):
        FIGURES.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if not getattr(config.option, "dist", "no") == "loadgroup" and not hasattr(config, "workerinput"):
        return
    for item in items:
        if is_busy(item):
            item.add_marker(pytest.mark.xdist_group("busy"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(params=["sink", "mosquitto"])
def peer(request):
    return request.param


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return stories.Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def story(request, box, network, certificates):
    told = stories.Story(box, network, certificates, request.node.name)
    yield told
    told.fini()
    told.file_figures(FIGURES, getattr(request.node, "went", None))


@pytest.hookimpl(tryfirst=True, hookwrapper=True)
def pytest_runtest_protocol(item):
    item.went = None
    yield


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    outcome = yield
    pyfuncitem.went = outcome.excinfo is None


def pytest_terminal_summary(terminalreporter):
    if not FIGURES.exists():
        return
    terminalreporter.section("figures")
    for line in FIGURES.read_text().splitlines():
        terminalreporter.write_line(line)
        terminalreporter.write_line("  " + report.in_words(report.parse(line)))
