"""A short version of `tests/long/test_soak.py`."""

from __future__ import annotations

import sys

import pytest
from soak import caption_for, train_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_memory_does_not_grow_during_training(small_images, compile_cache, tmp_path):
    train_for(15, small_images, compile_cache, tmp_path)


def test_memory_does_not_grow_during_captioning(small_workdir):
    caption_for(10, small_workdir)
