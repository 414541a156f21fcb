"""Damaged images and caption files, more of them and different ones in each run: read, or rejected by name.

python -m pytest -m long tests/long/test_fuzz.py --examples=20000
"""

from __future__ import annotations

import logging

import pytest
from damaged_files import check_captions, check_image, damaged_captions, damaged_images
from hypothesis import HealthCheck, given, settings

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("files", "check"), [(damaged_images, check_image), (damaged_captions, check_captions)])
def test_damaged_files_are_read_or_reported(files, check, amount, caplog):
    caplog.set_level(logging.ERROR)  # every skipped file logs a warning
    examples = []

    @settings(max_examples=amount("examples"), deadline=None, suppress_health_check=list(HealthCheck))
    @given(files())
    def read(data):
        examples.append(check(data))

    read()
    assert True in examples and False in examples  # some damage is harmless, some is not
