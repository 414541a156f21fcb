"""Memory use does not grow during hours of training and captioning.

python -m pytest -n 2 --dist load -m long tests/long/test_soak.py --minutes=120
"""

from __future__ import annotations

import pytest
from soak import caption_for, train_for

pytestmark = pytest.mark.long


def test_memory_does_not_grow_during_training(small_images, compile_cache, get_option, tmp_path):
    train_for(60 * get_option("minutes"), small_images, compile_cache, tmp_path)


def test_memory_does_not_grow_during_captioning(small_workdir, get_option):
    caption_for(60 * get_option("minutes"), small_workdir)
