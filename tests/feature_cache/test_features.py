"""Training from the feature cache, its key, and recovery from an interrupted computation of features."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from etils import epath
from ml_collections import ConfigDict
from resume_run import read_rows

from caption_jax.feature_cache.features import cache_key, check_frozen, prepare_features
from caption_jax.parameters.paths import flatten
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.runs.initial_variables import initial_variables
from caption_jax.specs import RunSpec
from caption_jax.training.loop import Run
from caption_jax.training.state import TrainState
from input_pipeline import inputs
from input_pipeline.batches import train_batches
from input_pipeline.inputs import FeatureFiles, StoredFeatures

STEPS = 6
FROZEN = r"image_encoder/backbone/(stem|stage_[12])/.*"
RULES = ((FROZEN, {"lr": 0.0}), (f"(?!{FROZEN}).*", {"lr": 1.0}))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of seven training images."""
    folder = tmp_path_factory.mktemp("seven")
    (folder / "images").mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(7):
            colour, side = list(small_run.COLOURS)[number % 4], ("left", "right")[number % 2]
            small_run.box_image(colour, side).save(folder / "images" / f"{number}.png")
            writer.writerows([[f"{number}.png", f"a {colour} box"], [f"{number}.png", f"on the {side}, a box"]])
    return folder


@pytest.fixture(scope="module")
def variables(images, compile_cache, tmp_path_factory) -> dict:
    """Initial variables of the model."""
    return initial_variables(make_experiment(make_config(images), tmp_path_factory.mktemp("fresh")))


def make_config(root: Path, stage: str = "stage_2", augment: bool = False, **cache) -> ConfigDict:
    """Returns a config that trains the layers after the cached stage with SGD, whose updates are linear in gradients.

    Args:
        root: folder of the images.
        stage: last cached stage; no cache if empty.
        augment: whether to augment images.
        cache: other settings of the feature cache.
    """
    config = small_run.get_config()
    config.data.root = str(root)
    config.data.feature_cache.update({"stage": stage, **cache})
    if augment:
        config.augment.update({"flip": True, "min_crop_scale": 0.4, "brightness": 0.2})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.1, "rules": RULES})
    config.train.update({"steps": STEPS, "log_every": 1, "checkpoint_every": 3})
    return config


def train(config: ConfigDict, workdir: Path, stop_after: int = STEPS) -> TrainState:
    """Starts or resumes training. Returns the state after `stop_after` steps."""
    with contextlib.closing(Run(make_experiment(config, workdir))) as run:
        run.train(lambda step: step == stop_after)
    return jax.device_get(run.state)


def compute_features(config: ConfigDict, workdir: Path, variables: dict) -> StoredFeatures:
    return prepare_features(make_experiment(config, workdir), variables)


def make_experiment(config: ConfigDict, workdir: Path) -> Experiment:
    return start_experiment(RunSpec.from_config(config), epath.Path(workdir))


def compute_max_difference(first: TrainState, second: TrainState) -> float:
    """Returns the largest absolute difference between the parameters and batch statistics of two states."""
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), first.weights(), second.weights())))


def read_block_times(folder: Path) -> dict[str, int]:
    """Returns the modification time in nanoseconds of each block of features under `folder`, by file name."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.npy"))}


@pytest.mark.slow
def test_training_gives_the_same_weights_with_and_without_the_cache(variables, images, tmp_path):
    uncached = train(make_config(images, stage=""), tmp_path / "uncached")
    cached = train(make_config(images, dtype="float32"), tmp_path / "cached")
    assert compute_max_difference(cached, uncached) < 1e-5
    before, after = flatten(variables), flatten(cached.weights())
    changed = {path for path, value in after.items() if np.abs(value - before[path]).max() > 1e-4}
    block = "image_encoder/backbone/stage_3/block_0"
    assert {f"params/{block}/expand/conv/kernel", f"batch_stats/{block}/expand/norm/mean"} < changed
    assert {"params/image_encoder/backbone/head/norm/scale", "params/decoder/embedding"} < changed
    for path, value in after.items():
        if "/stem/" in path or "/stage_1/" in path or "/stage_2/" in path:
            np.testing.assert_array_equal(value, before[path], err_msg=path)


@pytest.mark.slow
def test_float16_features_change_parameters_only_by_rounding_errors(variables, images, tmp_path):
    float32_state = train(make_config(images, dtype="float32"), tmp_path / "float32")
    float16_state = train(make_config(images), tmp_path / "float16")
    # The relative errors of 11 significant bits are at most 1/2,048.
    assert 0 < compute_max_difference(float16_state, float32_state) < 2e-3


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_identically_with_the_stored_features(compile_cache, images, tmp_path):
    config = make_config(images, augment=True, views=3)
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    expected = train(config, uninterrupted)
    train(config, stopped, stop_after=4)
    block_times = read_block_times(stopped)
    resumed = train(config, stopped)
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)
    assert read_rows(stopped) == read_rows(uninterrupted)
    assert read_block_times(stopped) == block_times and len(block_times) == 1
    assert len(list((stopped / "features").iterdir())) == 1


def test_an_interrupted_computation_resumes_after_its_complete_blocks(variables, images, tmp_path, monkeypatch):
    config = make_config(images, augment=True, views=2, folder=str(tmp_path / "interrupted"))
    monkeypatch.setattr(inputs, "BLOCK_BYTES", 2 * 2 * 8 * 8 * 8 * 2)  # two images
    write, written_blocks = FeatureFiles.write, []

    def interrupt_third_write(files, block, *content):
        written_blocks.append(block)
        if len(written_blocks) == 3:
            files.folder.joinpath(f"block_{block:05d}.npy.17.part").write_bytes(b"\x93NUMPY")
            raise KeyboardInterrupt
        write(files, block, *content)

    monkeypatch.setattr(FeatureFiles, "write", interrupt_third_write)
    with pytest.raises(KeyboardInterrupt):
        compute_features(config, tmp_path / "run", variables)
    (folder,) = (tmp_path / "interrupted").iterdir()
    block_times = read_block_times(folder)
    assert written_blocks == [0, 1, 2] and list(block_times) == ["block_00000.npy", "block_00001.npy"]

    resumed = compute_features(config, tmp_path / "run", variables)
    assert written_blocks[3:] == [2, 3]
    assert block_times.items() < read_block_times(folder).items()
    config.data.feature_cache.folder = str(tmp_path / "uninterrupted")
    uninterrupted = compute_features(config, tmp_path / "other", variables)
    views = [
        [features.load(index, epoch) for index in range(7) for epoch in (0, 1)] for features in (resumed, uninterrupted)
    ]
    np.testing.assert_array_equal(*views)
    assert len(np.unique(np.reshape(views[0], (14, -1)), axis=0)) == 14  # all images and views differ


def test_unreadable_images_are_reported_and_skipped(variables, images, tmp_path, caplog):
    folder = shutil.copytree(images, tmp_path / "damaged")
    broken = folder / "images" / "3.png"
    broken.write_bytes(b"not an image")
    config = make_config(folder)
    experiment = make_experiment(config, tmp_path / "run")
    for features in (None, compute_features(config, tmp_path / "run", variables)):
        description = experiment.description
        iterator = train_batches(
            experiment.split("train"),
            description.preprocessing,
            description.vocabulary,
            config.data,
            0,
            stored=features,
        )
        with caplog.at_level(logging.WARNING, logger="input_pipeline"):
            batches = [next(iterator) for _ in range(7)]
        iterator.close()
        for batch in batches:
            np.testing.assert_array_equal(batch["mask"], batch["index"] != 3)
        assert list(iterator.problems) == [str(broken)]
        assert "features" not in batches[0] or np.isfinite([batch["features"] for batch in batches]).all()
    assert caplog.text.count(f"Skipping unreadable image: {broken}: not in a supported image format") == 2


def test_parameters_of_cached_stages_must_be_frozen(variables, images, tmp_path):
    config = make_config(images, stage="stage_3")
    with pytest.raises(ValueError) as error:
        compute_features(config, tmp_path, variables)
    for fragment in ("stage='stage_3'", "backbone/stage_3/", repr(RULES[1][0]), "'lr': 0.0"):
        assert fragment in str(error.value)
    params = {"image_encoder": {"backbone": {"stem": {"conv": {"kernel": 0}}}}, "decoder": {"embedding": 0}}
    config.optimizer.rules = (("image_encoder/.*", {"from_step": 5}), ("decoder/.*", {}))
    with pytest.raises(ValueError, match=r"'image_encoder/\.\*'"):  # trained from step 5
        check_frozen(params, RunSpec.from_config(config))
    config.optimizer.rules = (("image_encoder/.*", {"lr": 0.0}), ("decoder/.*", {}))
    check_frozen(params, RunSpec.from_config(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": "stage_4"}, r"feature_cache.stage: unknown stage 'stage_4'; expected one of stem, .*, head"),
        ({"views": 0}, "views is 0"),
        ({"views": 2}, "views is 2, but without augmentation all views of an image are identical"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"folder": "gs://bucket/features"}, "set config.data.feature_cache.folder to a local folder"),
    ],
)
def test_invalid_settings_are_rejected(variables, images, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        compute_features(make_config(images, **settings), tmp_path, variables)


def test_the_cache_key_depends_on_everything_that_affects_features(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    frozen = {"params": {"kernel": np.array([1.0, 0.0])}, "batch_stats": {"mean": np.zeros(2)}}
    keys = []

    def compute_key(weights=frozen, augment=False, **changes) -> str:
        config = make_config(folder, augment=augment)
        config.update_from_flattened_dict(changes)
        return json.dumps(cache_key(make_experiment(config, tmp_path / str(len(keys))), weights))

    def assert_new_key(*arguments, **changes) -> None:
        keys.append(compute_key(*arguments, **changes))
        assert len(set(keys)) == len(keys), changes

    assert_new_key()
    # An update of 0 may change the sign of 0.
    assert compute_key({**frozen, "params": {"kernel": np.array([1.0, -0.0])}}) == keys[0]
    assert compute_key(**{"seed": 1, "optimizer.learning_rate": 1.0, "data.captions_per_image": 1}) == keys[0]
    assert_new_key({**frozen, "params": {"kernel": np.array([1.0, 1e-9])}})
    assert_new_key({**frozen, "batch_stats": {"mean": np.ones(2)}})
    assert_new_key(augment=True)
    assert_new_key(augment=True, seed=1)
    assert_new_key(augment=True, **{"augment.min_crop_scale": 0.5})
    assert_new_key(augment=True, **{"data.feature_cache.views": 2})
    assert_new_key(**{"data.feature_cache.dtype": "float32"})
    assert_new_key(**{"data.feature_cache.stage": "stage_1"})
    assert_new_key(**{"data.image_size": 40})
    assert_new_key(**{"data.interpolation": "area"})
    (folder / "images" / "2.png").write_bytes((folder / "images" / "1.png").read_bytes())
    assert_new_key()
    with (folder / "captions.csv").open("a") as file:
        file.write("new.png,a new caption\n")
    (folder / "images" / "new.png").write_bytes((folder / "images" / "1.png").read_bytes())
    assert_new_key()
