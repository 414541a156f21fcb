"""The memory of programs that run for hours does not grow after their warm-up.

python -m pytest -m long tests/long/test_soak.py --minutes=120
"""

from __future__ import annotations

import pytest
from soak import caption_for, train_for

pytestmark = pytest.mark.long


def test_memory_does_not_grow_during_training(small_images, compile_cache, amount, tmp_path):
    train_for(60 * amount("minutes"), small_images, compile_cache, tmp_path)


def test_memory_does_not_grow_during_captioning(small_workdir, amount):
    caption_for(60 * amount("minutes"), small_workdir)
