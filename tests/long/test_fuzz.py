"""Randomly damaged images and caption files, different in each run, are read or rejected with an error naming the file.

python -m pytest -m long tests/long/test_fuzz.py --examples=20000
"""

from __future__ import annotations

import logging

import pytest
from damaged_files import check_captions, check_image, damaged_captions, damaged_images
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("files", "check"), [(damaged_images, check_image), (damaged_captions, check_captions)])
def test_damaged_files_are_read_or_reported(files, check, get_option, caplog):
    caplog.set_level(logging.ERROR)  # each skipped file logs a warning
    results = []

    @settings(max_examples=get_option("examples"), deadline=None, suppress_health_check=list(HealthCheck))
    @given(files())
    def check_file(data):
        results.append(check(data))

    check_file()
    assert set(results) == {True, False}  # some of the damaged files are readable
