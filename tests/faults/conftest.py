"""Fixtures of the tests that cause faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import SmallDisk, mount_small_disk
from system_call_faults import build_library


@pytest.fixture(scope="session")
def fault_library(build_once) -> Path:
    """The library that makes system calls fail."""
    return build_once("faults", build_library) / "system_call_faults.so"


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    """An empty disk of 64 MB."""
    with mount_small_disk(tmp_path / "disk", 64) as disk:
        yield disk
