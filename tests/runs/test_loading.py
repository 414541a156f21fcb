"""Weights for inference: those of the newest checkpoint, whichever file they are read from."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import jax
import numpy as np
import pytest

import caption_jax.runs.checkpoints
from caption_jax.runs.checkpoints import Checkpoints
from caption_jax.runs.loading import load_weights
from caption_jax.runs.weights import Weights, fingerprint, read_plain_file, write_plain_file


def variables(step: int) -> dict:
    """Variables whose every number says which step they are of."""
    kernel, count = np.full((2, 3), step, np.float32), np.asarray(step, np.int32)
    return {"params": {"decoder": {"kernel": kernel, "count": count}}, "batch_stats": {"norm": {"mean": kernel[0] / 8}}}


def save(workdir: Path, step: int, best: bool = True, value: int | None = None) -> None:
    weights = jax.device_put(variables(step if value is None else value))
    checkpoints = Checkpoints(workdir)
    if best:
        checkpoints.save_best(step, weights, {"CIDEr-D": 0.5})
    checkpoints.save(step, weights, {"rest": jax.numpy.zeros(2)}, {})
    checkpoints.close()


def assert_of(weights: Weights, step: int, value: int | None = None) -> None:
    expected = variables(step if value is None else value)
    assert weights.step == step
    assert jax.tree.structure(weights.variables) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(weights.variables), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding == jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        assert leaf.dtype == wanted.dtype and np.array_equal(leaf, wanted)


@pytest.fixture
def without_orbax(monkeypatch):
    """Switches off the reading of checkpoints, to show that a reading does without."""

    def switch_off() -> None:
        def fail(*_):
            raise AssertionError("read from the checkpoint")

        monkeypatch.setattr(caption_jax.runs.checkpoints, "read_weights", fail)

    return switch_off


def test_the_second_reading_is_from_the_plain_file(tmp_path, without_orbax):
    save(tmp_path, 4)
    first = load_weights(str(tmp_path))
    without_orbax()
    second = load_weights(str(tmp_path))
    assert_of(first, 4)
    assert_of(second, 4)
    assert fingerprint(first.variables) == fingerprint(second.variables)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["best.safetensors"]


def test_a_newer_checkpoint_is_read(tmp_path):
    save(tmp_path, 4)
    assert_of(load_weights(tmp_path), 4)
    save(tmp_path, 9)
    assert_of(load_weights(tmp_path), 9)
    assert_of(load_weights(tmp_path, "last"), 9)
    save(tmp_path, 10, best=False)  # compared as numbers: "9" > "10"
    assert_of(load_weights(tmp_path), 9)
    assert_of(load_weights(tmp_path, "last"), 10)


def test_another_checkpoint_of_the_same_step_is_read(tmp_path):
    save(tmp_path, 4)
    assert_of(load_weights(tmp_path), 4)
    save(tmp_path / "again", 4, value=7)
    (tmp_path / "checkpoints").rename(tmp_path / "old")
    (tmp_path / "again" / "checkpoints").rename(tmp_path / "checkpoints")
    assert_of(load_weights(tmp_path), 4, value=7)


def test_the_best_is_the_last_until_there_is_one(tmp_path, without_orbax):
    save(tmp_path, 3, best=False)
    assert_of(load_weights(tmp_path), 3)
    save(tmp_path, 5)
    assert_of(load_weights(tmp_path), 5)
    without_orbax()
    assert_of(load_weights(tmp_path), 5)


def test_what_a_kill_left_unfinished_is_passed_over(tmp_path):
    save(tmp_path, 4)
    (tmp_path / "checkpoints" / "best" / "8.orbax-checkpoint-tmp").mkdir()
    assert_of(load_weights(tmp_path), 4)
    assert_of(load_weights(tmp_path), 4)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_file_that_was_cut_short_is_made_again(tmp_path, caplog, size):
    save(tmp_path, 4)
    load_weights(tmp_path)
    file = tmp_path / "weights" / "best.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with caplog.at_level(logging.WARNING):
        assert_of(load_weights(tmp_path), 4)
    assert str(file) in caplog.text
    assert file.read_bytes() == whole


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    save(tmp_path, 4)
    save(tmp_path / "again", 4, value=7)
    read = caption_jax.runs.checkpoints.read_weights

    def read_slowly(*arguments):
        found = read(*arguments)
        (tmp_path / "checkpoints").rename(tmp_path / "old")
        (tmp_path / "again" / "checkpoints").rename(tmp_path / "checkpoints")
        return found

    monkeypatch.setattr(caption_jax.runs.checkpoints, "read_weights", read_slowly)
    assert_of(load_weights(tmp_path), 4)
    monkeypatch.undo()
    assert_of(load_weights(tmp_path), 4, value=7)


def test_a_workdir_that_cannot_be_written_to_serves(tmp_path, caplog):
    save(tmp_path, 4)
    (tmp_path / "weights").write_text("where the folder would be")
    with caplog.at_level(logging.WARNING):
        assert_of(load_weights(tmp_path), 4)
    assert "cannot be kept" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "weights"]


def test_a_disk_that_runs_full_leaves_nothing_behind(tmp_path, monkeypatch):
    save(tmp_path, 4)

    def write_a_part(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_a_part)
    assert_of(load_weights(tmp_path), 4)
    assert os.listdir(tmp_path / "weights") == []


def test_layouts_and_scalars_are_kept(tmp_path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_plain_file(tmp_path / "of" / "best", {"a": {"turned": turned, "one": np.float32(2)}}, "note")
    found = read_plain_file(tmp_path / "of" / "best", "note")
    assert found["a"]["turned"].tolist() == turned.tolist() and found["a"]["one"] == 2 and found["a"]["one"].shape == ()
    assert read_plain_file(tmp_path / "of" / "best", "another note") is None


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_weights(tmp_path)
    save(tmp_path, 4)
    with pytest.raises(ValueError, match="'best' or 'last', not 'newest'"):
        load_weights(tmp_path, "newest")
