"""Fixtures of the interop suite: those of tests/integration, whose conftest gives each session a network of its own."""

import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
INTEGRATION = HERE.parent / "integration"
sys.path[:0] = [str(HERE), str(INTEGRATION)]

_spec = importlib.util.spec_from_file_location("integration_conftest", INTEGRATION / "conftest.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

box, daemon, network = _module.box, _module.daemon, _module.network
pytest_runtest_makereport = _module.pytest_runtest_makereport


def pytest_configure(config):
    _module.pytest_configure(config)
    config.addinivalue_line("markers", "quick: its broker is installed within a minute; CI runs these")
