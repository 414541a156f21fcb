"""Randomly damaged files, different in each run, are read or rejected with an error naming the file.

Each file takes at most five seconds, and the process at most 1.5 GB. The processes that decode only images read ten
times as many files.

python -m pytest -n 0 -s -m long tests/long/test_fuzz.py --examples=20000
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from damaged_files import (
    check_captions,
    check_image,
    check_index,
    check_results,
    damaged_captions,
    damaged_images,
    damaged_indexes,
)
from hypothesis import HealthCheck, given, settings
from image_fuzzing import MAX_MEMORY_MB, fuzz_in_child

pytestmark = pytest.mark.long

MAX_MB = 1500


@pytest.mark.parametrize("seed", range(3))
def test_damaged_images_take_little_time_and_memory(seed, get_option, tmp_path):
    result = fuzz_in_child(10 * get_option("examples") // 3, seed, tmp_path / "last")
    print(result)
    assert 0 < result.readable < result.inputs
    assert result.slowest < 5 and result.memory_mb < MAX_MEMORY_MB and len(result.longest_reason) < 200


@pytest.mark.parametrize(
    ("files", "check"),
    [
        (damaged_images, check_image),
        (damaged_captions, check_captions),
        (damaged_captions, check_results),
        (damaged_indexes, check_index),
    ],
    ids=["images", "captions", "results", "index"],
)
def test_damaged_files_are_read_or_reported(files, check, get_option, caplog):
    caplog.set_level(logging.ERROR)  # each skipped file logs a warning
    results = []

    @settings(max_examples=get_option("examples"), deadline=None, suppress_health_check=list(HealthCheck))
    @given(files())
    def check_file(data):
        results.append(check(data))

    check_file()
    assert set(results) == {True, False}  # some of the damaged files are readable
    assert read_peak_mb() < MAX_MB
    print(f"{len(results):,} files, of which {sum(results):,} are readable; at most {read_peak_mb():.0f} MB")


def read_peak_mb() -> float:
    """Returns the peak of resident memory of this process."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
