"""Weight files and checkpoint metadata with random damage are read, or rejected in one line.

tests/long/test_fuzz_weights.py repeats this with more examples, which differ in each run.
"""

from __future__ import annotations

import pytest
from damaged_weights import WEIGHT_FILES, check_records, check_weights, damaged_records, damaged_weights, make_weights
from hypothesis import HealthCheck, given, settings

pytest.importorskip("h5py")


@pytest.mark.parametrize(
    ("strategy", "check"),
    [(damaged_weights, check_weights), (damaged_records, check_records)],
    ids=["weights", "records"],
)
def test_damaged_files_are_read_or_rejected(strategy, check):
    results = []

    @settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy())
    def check_file(data):
        results.append(check(data))

    check_file()
    assert False in results and (True in results or check is check_records)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_the_intact_files_are_read(name):
    if name == "weights.h5":
        pytest.skip("these names are not those of a Keras model, but the file is opened like one")
    assert check_weights((name, make_weights(name)))
