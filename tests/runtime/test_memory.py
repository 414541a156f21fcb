"""A sample of `tests/long/test_soak.py`: memory over some seconds."""

from __future__ import annotations

import sys

import pytest
from soak import caption_for, train_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def test_training_with_evaluations_and_checkpoints_needs_no_more_memory(small_images, compile_cache, tmp_path):
    train_for(30, small_images, compile_cache, tmp_path)


def test_captioning_needs_no_more_memory(small_workdir):
    caption_for(10, small_workdir)
