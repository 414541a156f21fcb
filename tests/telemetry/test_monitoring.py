"""Records of a training run: metrics.jsonl and event files."""

from __future__ import annotations

import numpy as np
import pytest

from caption_jax.telemetry.metrics_file import Row, read_metrics
from caption_jax.telemetry.monitoring import Monitor


def test_processes_other_than_the_main_process_write_nothing(tmp_path):
    monitor = Monitor(tmp_path, {"seed": 0}, is_main_process=False)
    monitor.scalars(1, {"loss": 1.0}, "train")
    monitor.images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    monitor.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A workdir with records of all kinds."""
    folder = tmp_path_factory.mktemp("run")
    monitor = Monitor(folder, {"seed": 7})
    monitor.scalars(50, {"loss": np.float32(2.5)}, "train")
    monitor.scalars(50, {"CIDEr-D": 0.25}, "val")
    monitor.images(50, {"samples": np.full((4, 6, 3), 200, np.uint8), "cards": np.zeros((2, 4, 6, 3), np.uint8)})
    monitor.close()
    monitor.close()  # closing twice is allowed
    return folder


def test_event_files_contain_scalars_images_and_the_config(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
    tags = set(events.Tags()["tensors"])
    assert tags == {
        *("train/loss", "val/CIDEr-D", "samples", "cards", "config"),
        *("overview/loss_train", "overview/CIDEr-D_val"),
    }
    assert len(events.Tensors("cards")[0].tensor_proto.string_val) == 2 + 2  # width, height, and two images
    loss = events.Tensors("train/loss")[0]
    assert (loss.step, make_ndarray(loss.tensor_proto)) == (50, 2.5)
    width, height, png = events.Tensors("samples")[0].tensor_proto.string_val
    assert (width, height, png[:4]) == (b"6", b"4", b"\x89PNG")
    assert b'"seed": 7' in events.Tensors("config")[0].tensor_proto.string_val[0]


def test_the_metrics_file_contains_the_scalars(run_folder):
    assert read_metrics(run_folder / "metrics.jsonl") == [
        Row(50, "train", {"loss": 2.5}),
        Row(50, "val", {"CIDEr-D": 0.25}),
    ]
