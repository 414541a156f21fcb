"""Fixtures of the tests that cause faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import faulty_main
import pytest
from resume_run import RunLauncher
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


@pytest.fixture(scope="session")
def faulty(launcher) -> RunLauncher:
    """Starts runs with the faults that `faulty_main` describes."""
    return dataclasses.replace(launcher, script=faulty_main.__file__)
