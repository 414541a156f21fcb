"""Training from the pixel cache, its key, and recovery from an interrupted run."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from ml_collections import ConfigDict
from resume_run import read_rows

from caption_jax.feature_cache.pixel_cache import cache_key, prepare_pixels
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.specs import RunSpec
from caption_jax.training.dry_run import dry_run
from caption_jax.training.loop import Run
from input_pipeline import inputs
from input_pipeline.inputs import Pixels
from input_pipeline.pixel_files import PixelFiles, StoredPixels


def make_config(root: Path, use: str = "always", **cache) -> ConfigDict:
    config = small_run.get_config()
    config.data.root = str(root)
    config.data.pixel_cache.update({"use": use, **cache})
    config.augment.update({"flip": True, "min_crop_scale": 0.4})
    config.train.update({"steps": 6, "log_every": 1, "checkpoint_every": 3, "eval_every": 6})
    return config


def make_experiment(config: ConfigDict, workdir: Path) -> Experiment:
    return start_experiment(RunSpec.from_config(config), epath.Path(workdir))


def train(config: ConfigDict, workdir: Path, stop_after: int = 6) -> dict:
    """Starts or resumes training. Returns the weights after `stop_after` steps."""
    with contextlib.closing(Run(make_experiment(config, workdir))) as run:
        run.train(lambda step: step == stop_after)
    return jax.device_get(run.state.weights())


@pytest.mark.slow
def test_training_gives_the_same_weights_with_and_without_the_cache(small_images, compile_cache, tmp_path):
    expected = train(make_config(small_images, use="never"), tmp_path / "decoded")
    train(make_config(small_images), tmp_path / "run", stop_after=4)
    (folder,) = (tmp_path / "run" / "pixels").iterdir()
    written = folder.joinpath("pixels.npy").stat().st_mtime_ns
    actual = train(make_config(small_images), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "decoded")
    assert folder.joinpath("pixels.npy").stat().st_mtime_ns == written


def test_an_interrupted_run_continues_after_its_complete_blocks(small_images, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 3 * 32 * 32 * 3)  # three of the eight images
    experiment = make_experiment(make_config(small_images), tmp_path)
    write, written = PixelFiles.write, []

    def interrupt_second_write(files, block, *content):
        written.append(block)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(files, block, *content)

    monkeypatch.setattr(PixelFiles, "write", interrupt_second_write)
    with pytest.raises(KeyboardInterrupt):
        prepare_pixels(experiment)
    stored = prepare_pixels(experiment)
    assert written == [0, 1, 1, 2]
    assert isinstance(prepare_pixels(experiment), StoredPixels) and len(written) == 4
    decoded = Pixels(experiment.split("train"), experiment.description.preprocessing)
    for index in range(8):
        np.testing.assert_array_equal(stored.load(index), decoded.load(index))


def test_unreadable_images_are_reported(small_images, tmp_path, caplog):
    data = Path(shutil.copytree(small_images, tmp_path / "data"))
    (data / "images" / "03.png").write_bytes(b"not an image")
    with caplog.at_level(logging.WARNING, logger="absl"):
        stored = prepare_pixels(make_experiment(make_config(data), tmp_path / "run"))
    assert list(stored.problems) == [3]
    (folder,) = (tmp_path / "run" / "pixels").iterdir()
    assert f"1 images could not be read when the pixels were written; after repairing them, delete {folder}" in (
        caplog.text
    )


def test_the_cache_key_depends_on_images_and_preprocessing_only(small_images, tmp_path):
    data = Path(shutil.copytree(small_images, tmp_path / "data"))
    keys = []

    def compute_key(**changes) -> str:
        config = make_config(data)
        config.update_from_flattened_dict(changes)
        return json.dumps(cache_key(make_experiment(config, tmp_path / f"{len(keys)}-{len(changes)}")))

    keys.append(compute_key())
    assert compute_key(**{"seed": 1, "augment.flip": False, "data.captions_per_image": 1}) == keys[0]
    for key, value in {"image_size": 40, "interpolation": "area", "resize": "crop"}.items():
        keys.append(compute_key(**{f"data.{key}": value}))
    (data / "images" / "02.png").write_bytes((data / "images" / "01.png").read_bytes())
    keys.append(compute_key())
    assert len(set(keys)) == len(keys) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel_cache.use": "auto"}, "config.data.pixel_cache.use is 'auto'; it must be 'never' or 'always'"),
        ({"pixel_cache.folder": "gs://bucket/pixels"}, "set config.data.pixel_cache.folder to a local folder"),
        ({"feature_cache.stage": "stage_2"}, "training reads either pixels or features"),
    ],
)
def test_invalid_settings_are_rejected(small_images, tmp_path, settings, message):
    config = make_config(small_images)
    config.data.update_from_flattened_dict(settings)
    with pytest.raises(ValueError, match=message):
        prepare_pixels(make_experiment(config, tmp_path))


def test_too_little_disk_space_is_an_error_before_anything_is_written(small_images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10_000))
    experiment = make_experiment(make_config(small_images), tmp_path)
    with pytest.raises(ValueError, match=r"has only 0\.00 GB free: set config\.data\.pixel_cache\.folder"):
        prepare_pixels(experiment)
    assert not list((tmp_path / "pixels").rglob("*.npy"))


@pytest.mark.slow
def test_a_dry_run_writes_no_pixels(small_images, compile_cache, tmp_path):
    dry_run(RunSpec.from_config(make_config(small_images)), tmp_path)
    assert not (tmp_path / "pixels").exists()
