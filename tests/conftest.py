"""What all tests share: the optional data folder and eight simulated devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before JAX starts: eight CPU devices, so that sharded code runs sharded wherever the tests do.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs that stands beside a development checkout, or a skip that says what is missing."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the development photographs in ../shared/data, which are not part of this repository")
    return root
