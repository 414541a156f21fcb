"""Randomly damaged weight files, checkpoint metadata and configs, new in each run, are read or rejected in one line.

python -m pytest -n 0 -s -m long tests/long/test_fuzz_weights.py --examples=20000
"""

from __future__ import annotations

import resource

import pytest
from damaged_descriptions import check_description, damaged_descriptions
from damaged_weights import check_records, check_weights, damaged_records, damaged_weights
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.long

MAX_MEGABYTES = 700  # above the memory at the start


@pytest.mark.parametrize(
    ("strategy", "check"),
    [
        (damaged_weights, check_weights),
        (damaged_records, check_records),
        (damaged_descriptions, check_description),
    ],
    ids=["weights", "checkpoints", "descriptions"],
)
def test_damaged_files_are_read_or_rejected_in_bounded_time_and_memory(strategy, check, get_option):
    pytest.importorskip("h5py")
    results = []

    @settings(max_examples=get_option("examples"), deadline=5000, suppress_health_check=list(HealthCheck))
    @given(strategy())
    def check_file(data):
        results.append(check(data))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_file()
    assert False in results and (True in results or check is check_records)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MAX_MEGABYTES
    print(f"{len(results):,} files, of which {sum(results):,} are readable")
