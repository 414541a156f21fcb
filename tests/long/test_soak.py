"""Programs that go on for hours need no more memory at the end than when they had warmed up.

python -m pytest -m long tests/long/test_soak.py --minutes=120
"""

from __future__ import annotations

import pytest
from soak import caption_for, train_for

pytestmark = pytest.mark.long


def test_training_with_evaluations_and_checkpoints_needs_no_more_memory(small_images, compile_cache, amount, tmp_path):
    train_for(60 * amount("minutes"), small_images, compile_cache, tmp_path)


def test_captioning_needs_no_more_memory(small_workdir, amount):
    caption_for(60 * amount("minutes"), small_workdir)
