"""The size of the long tests. The defaults are those of a release."""

from __future__ import annotations

import pytest

AMOUNTS = {
    "kills": (int, 200, "processes that tests/long/test_kills.py kills"),
    "examples": (int, 20_000, "files that each test of tests/long/test_fuzz.py reads"),
    "minutes": (float, 120.0, "time that each test of tests/long/test_soak.py takes"),
    "seed": (int, 0, "of the moments at which tests/long/test_kills.py kills"),
}


def pytest_addoption(parser):
    group = parser.getgroup("long", "long tests")
    for name, (kind, default, text) in AMOUNTS.items():
        group.addoption(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")


@pytest.fixture(scope="session")
def amount(request):
    """Returns the amount of a name in `AMOUNTS`, or the default if pytest loads this file too late for its options."""
    return lambda name: request.config.getoption(f"--{name}", default=AMOUNTS[name][1])
