"""Command-line options for the duration and random seed of the long tests. The defaults are used before a release."""

from __future__ import annotations

import pytest

OPTIONS = {
    "kills": (int, 100, "number of processes that each test of tests/long/test_kills.py kills"),
    "examples": (int, 20_000, "number of files that each test of tests/long/test_fuzz.py reads"),
    "minutes": (float, 120.0, "duration of each test of tests/long/test_soak.py"),
    "requests": (int, 20_000, "number of requests that tests/long/test_server.py sends while it measures memory"),
    "seed": (int, 0, "random seed for the moments at which processes are killed"),
}


def pytest_addoption(parser):
    group = parser.getgroup("long", "long tests")
    for name, (value_type, default, text) in OPTIONS.items():
        group.addoption(f"--{name}", type=value_type, default=default, help=f"{text} (default: {default})")


@pytest.fixture(scope="session")
def get_option(request):
    """A function that returns the value of an option in `OPTIONS`.

    It returns the default if pytest loaded this file too late to add its options.
    """
    return lambda name: request.config.getoption(f"--{name}", default=OPTIONS[name][1])
