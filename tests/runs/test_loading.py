"""Models are loaded for inference from a workdir, a moved model folder or a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from small_models import assert_weights_of_step, save_checkpoint, small_description, write_model

import caption_jax.runs.checkpoints
from caption_jax.errors import ConfigError, MissingFileError, WorkdirError, user_message
from caption_jax.runs import loading
from caption_jax.runs.artifact import read_artifact, write_artifact
from caption_jax.runs.loading import load_model, read_model
from caption_jax.runs.weights import Weights


@pytest.fixture
def forbid_checkpoint_reads(monkeypatch):
    """Raises an error if a checkpoint is read."""

    def fail(*_):
        raise AssertionError("the checkpoint was read")

    monkeypatch.setattr(caption_jax.runs.checkpoints, "read_weights", fail)


def test_the_model_that_the_workdir_points_to_is_loaded(tmp_path, forbid_checkpoint_reads):
    write_model(tmp_path, 4)
    write_model(tmp_path, 9, best=False)
    model = load_model(str(tmp_path))
    assert_weights_of_step(model.weights, 4)
    for leaf in jax.tree.leaves(model.weights.variables):
        assert leaf.sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = small_description()
    assert model.description.vocabulary == expected.vocabulary
    assert model.description.model_settings == expected.model_settings
    assert model.description.preprocessing == expected.preprocessing
    write_model(tmp_path, 10)
    assert_weights_of_step(load_model(tmp_path).weights, 10)


def test_a_moved_model_is_loaded(tmp_path, forbid_checkpoint_reads, monkeypatch):
    write_model(tmp_path / "run", 4)
    shutil.move(tmp_path / "run" / "model-4", tmp_path / "moved model")
    assert_weights_of_step(load_model(tmp_path / "moved model").weights, 4)
    monkeypatch.chdir(tmp_path / "moved model")
    assert_weights_of_step(load_model(".").weights, 4)


def test_a_model_in_a_bucket_is_loaded(bucket, forbid_checkpoint_reads):
    write_model(bucket / "run", 4)
    write_model(bucket / "run", 9)
    assert_weights_of_step(load_model("gs://bucket/run").weights, 9)
    assert_weights_of_step(load_model(bucket / "run" / "model-4").weights, 4)
    (bucket / "run" / "model-9" / "model.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(WorkdirError, match=r"gs://bucket/run/model-9/model.safetensors is corrupted"):
        load_model("gs://bucket/run")


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


FILES = [
    "model.safetensors",
    "config.json",
    "model.json",
    "preprocessing.json",
    "tokenizer/vocab.json",
    "manifest.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", [flip_last_bit, lambda file: os.truncate(file, file.stat().st_size // 2), Path.unlink]
)
def test_damaged_files_are_rejected_with_a_remedy(tmp_path, name, damage):
    write_model(tmp_path, 4)
    damage(tmp_path / "model-4" / name)
    with pytest.raises((WorkdirError, MissingFileError)) as error:
        load_model(tmp_path)
    message = user_message(error.value)
    assert message.startswith(f"{tmp_path}/model-4/{name} is ") and "\n" not in message
    assert "restore the folder" in message and "--checkpoint=last" in message


def test_additional_files_are_ignored(tmp_path):
    write_model(tmp_path, 4)
    (tmp_path / "model-4" / "compile_cache").mkdir()
    (tmp_path / "model-4" / "notes.txt").write_text("some notes")
    assert_weights_of_step(load_model(tmp_path / "model-4").weights, 4)


def test_a_missing_model_folder_is_rejected(tmp_path):
    write_model(tmp_path, 4)
    shutil.rmtree(tmp_path / "model-4")
    with pytest.raises(FileNotFoundError, match=r"model-4/manifest.json is missing"):
        load_model(tmp_path)


def test_a_model_from_a_newer_release_is_rejected(tmp_path):
    write_model(tmp_path, 4)
    manifest = tmp_path / "model-4" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 2}))
    with pytest.raises(WorkdirError, match=r"version 2; this release reads .* up to version 2: use"):
        load_model(tmp_path / "model-4")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"folder": "../else", "manifest_sha256": "00"}'])
def test_a_damaged_pointer_is_rejected_with_a_remedy(tmp_path, content):
    write_model(tmp_path, 4)
    (tmp_path / "best_model.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"best_model.json .*delete it.* to read .*checkpoints"):
        load_model(tmp_path)


def test_the_next_model_is_loaded_if_the_run_deletes_a_model_while_it_is_being_read(tmp_path, monkeypatch):
    write_model(tmp_path, 4)

    def delete_and_read(folder, *arguments):
        monkeypatch.setattr(loading, "read_artifact", read_artifact)
        folder.rmtree()
        write_model(tmp_path, 9)
        return read_artifact(folder, *arguments)

    monkeypatch.setattr(loading, "read_artifact", delete_and_read)
    assert_weights_of_step(load_model(tmp_path).weights, 9)


def test_the_last_checkpoint_is_loaded_on_request(tmp_path, caplog):
    save_checkpoint(tmp_path, 4)
    write_model(tmp_path, 4)
    save_checkpoint(tmp_path, 10, best=False)
    with caplog.at_level(logging.WARNING):
        assert_weights_of_step(load_model(tmp_path).weights, 4)
        assert_weights_of_step(load_model(tmp_path, "last").weights, 10)
    assert not caplog.messages
    with pytest.raises(ConfigError, match="model-4 is a single model: checkpoint 'last' is in the workdir"):
        load_model(tmp_path / "model-4", "last")


def test_workdirs_from_older_releases_load_with_one_warning(tmp_path, caplog):
    save_checkpoint(tmp_path, 3, best=False)
    assert_weights_of_step(load_model(tmp_path).weights, 3)  # not evaluated yet
    save_checkpoint(tmp_path, 9)
    save_checkpoint(tmp_path, 10, best=False)  # steps must be compared as numbers; as strings, "9" > "10"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "best.safetensors").write_bytes(b"a copy cached by an older release")
    (tmp_path / "checkpoints" / "best" / "12.orbax-checkpoint-tmp").mkdir()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model = load_model(tmp_path)
    assert_weights_of_step(model.weights, 9)
    assert model.description.vocabulary == small_description().vocabulary
    (message,) = caplog.messages
    assert str(tmp_path) in message and "older release" in message and "\n" not in message


def test_transposed_scalar_and_empty_arrays_are_preserved(tmp_path):
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    tree = {"a": {"transposed": transposed, "one": np.float32(2)}, "b": {"empty": np.zeros((0, 3), np.int32)}}
    write_artifact(epath.Path(tmp_path), small_description(), Weights(tree, 1))
    restored = read_model(tmp_path / "model-1").weights.variables
    assert restored["a"]["transposed"].tolist() == transposed.tolist()
    assert restored["a"]["one"] == 2 and restored["a"]["one"].shape == ()
    assert restored["b"]["empty"].shape == (0, 3) and restored["b"]["empty"].dtype == np.int32


def test_a_folder_that_is_not_a_workdir_and_an_unknown_checkpoint_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing: .* is not the workdir of a training run"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="unknown checkpoint 'newest'; expected 'best', 'last' or a step"):
        load_model(tmp_path, "newest")


def test_other_users_can_read_the_model(tmp_path):
    write_model(tmp_path, 4)
    modes = {path.stat().st_mode & 0o444 for path in (tmp_path / "model-4").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~_get_umask() & 0o444}


def _get_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
