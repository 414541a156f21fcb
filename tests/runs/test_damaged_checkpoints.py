"""A damaged checkpoint is reported and set aside, and the newest intact one is restored bit for bit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from damaged_weights import DAMAGE, flip_bit, truncate

from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.runs.checkpoint_integrity import CHECKSUMS
from caption_jax.runs.checkpoints import Checkpoints, RestoredState, has_checkpoint, read_weights

STEPS = (12, 24)
# Files that are not needed to restore a checkpoint. Orbax writes them after the checksums.
UNCHECKED = ("commit_success.txt", "_CHECKPOINT_METADATA")

# All kinds of damage, each in one of the tiers.
TIERS = {"flipped bit": (), "missing": pytest.mark.slow}
KINDS = [pytest.param(kind, marks=TIERS.get(kind, pytest.mark.long)) for kind in DAMAGE]


def make_arrays(step: int) -> dict:
    values = np.random.default_rng(step).normal(size=(40, 32)).astype(np.float32)
    return {"params": {"decoder": {"kernel": jax.numpy.asarray(values), "bias": jax.numpy.full(4, step, np.int32)}}}


def save(workdir: Path, *steps: int) -> Path:
    """Saves checkpoints of which each one is the best so far, except step 36."""
    checkpoints = Checkpoints(workdir)
    for step in steps:
        weights = make_arrays(step)
        if step != 36:
            checkpoints.save_best(step, weights, {"CIDEr-D": step / 100})
        checkpoints.save(step, weights, {"rest": make_arrays(-step % 100)}, {"step": step})
    checkpoints.close()
    return workdir


def restore(workdir: Path, step: int | None = None, width: int = 32) -> RestoredState | None:
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*a.shape[:-1], width), a.dtype), make_arrays(0))
    shapes["params"]["decoder"]["bias"] = jax.ShapeDtypeStruct((4,), np.int32)
    checkpoints = Checkpoints(workdir, step)
    try:
        return checkpoints.restore(shapes, {"rest": shapes})
    finally:
        checkpoints.close()


def assert_restored(restored: RestoredState | None, step: int) -> None:
    assert restored.step == step and restored.records == {"step": step}
    for actual, expected in ((restored.weights, step), (restored.train["rest"], -step % 100)):
        jax.tree.map(np.testing.assert_array_equal, actual, make_arrays(expected))


@pytest.fixture(scope="module")
def saved_workdir(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("runs") / "saved", *STEPS)


@pytest.fixture
def workdir(saved_workdir, tmp_path) -> Path:
    return Path(shutil.copytree(saved_workdir, tmp_path / "run"))


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def last(workdir: Path, step: int = STEPS[-1]) -> Path:
    return workdir / "checkpoints" / "last" / str(step)


def names(workdir: Path, kind: str) -> list[str]:
    folder = workdir / "checkpoints" / kind
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))


@pytest.mark.parametrize("kind", KINDS)
def test_any_damaged_file_of_the_newest_checkpoint_is_noticed(saved_workdir, tmp_path, kind, caplog):
    for file in list_files(last(saved_workdir)):
        name = file.relative_to(last(saved_workdir)).as_posix()
        workdir = copy(saved_workdir, tmp_path / "run")
        DAMAGE[kind](last(workdir) / name)
        caplog.clear()
        restored = restore(workdir)
        if name in UNCHECKED or (name == CHECKSUMS and kind == "missing"):
            assert restored.step in STEPS
            assert_restored(restored, restored.step)
        else:
            assert_restored(restored, STEPS[0])
            assert names(workdir, "last") == ["12"] and names(workdir, "set_aside") == ["last-24"]
            (message,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
            assert name in message or name == CHECKSUMS  # a flipped bit can change the name of a file that it lists
            assert "up to 12 steps are repeated" in message and "\n" not in message


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_noticed_without_checksums_if_the_checkpoint_cannot_be_restored(saved_workdir, tmp_path, kind):
    """An older release wrote the checkpoints."""
    outcomes = set()
    for file in list_files(last(saved_workdir)):
        workdir = copy(saved_workdir, tmp_path / "run")
        for checksums in workdir.rglob(CHECKSUMS):
            checksums.unlink()
        path = last(workdir) / file.relative_to(last(saved_workdir))
        if path.name == CHECKSUMS:
            continue
        DAMAGE[kind](path)
        restored = restore(workdir)
        if restored.step == STEPS[0] or kind != "flipped bit":  # a flipped bit of an array can only be noticed by hash
            assert_restored(restored, restored.step)
        outcomes.add(restored.step)
    assert outcomes == set(STEPS)


def test_an_intact_checkpoint_without_checksums_is_restored(workdir):
    for file in workdir.rglob(CHECKSUMS):
        file.unlink()
    assert_restored(restore(workdir), 24)
    assert names(workdir, "set_aside") == []


@pytest.mark.parametrize("content", ["nothing", "weights only", "a file", "a file instead of the folder"])
def test_half_a_folder_of_another_tool_is_set_aside(workdir, content):
    target = last(workdir, 30)
    if content == "a file instead of the folder":
        target.write_text("not a folder")
    else:
        target.mkdir()
    if content == "weights only":
        shutil.copytree(last(workdir) / "weights", target / "weights")
    if content == "a file":
        (target / "notes.txt").write_text("notes")
    assert has_checkpoint(workdir)
    assert_restored(restore(workdir), 24)
    assert names(workdir, "last") in (["12", "24"], ["12", "24", "30"])
    save(workdir, 36)
    assert_restored(restore(workdir), 36)


def test_additional_files_do_not_matter(workdir):
    (last(workdir) / "notes.txt").write_text("notes")
    (last(workdir) / "train" / ".nfs0001").write_text("")
    (last(workdir) / "other").mkdir()
    (last(workdir) / "other" / "data").write_bytes(b"\0" * 10)
    (workdir / "checkpoints" / "last" / "notes").mkdir()
    assert_restored(restore(workdir), 24)


def test_several_damaged_checkpoints_are_set_aside_without_replacing_earlier_ones(workdir, caplog):
    for expected in (["last-24"], ["last-24", "last-24-2"]):
        flip_bit(last(workdir) / "records" / "metadata")
        assert_restored(restore(workdir), 12)
        assert names(workdir, "set_aside") == expected
        save(workdir, 24)
    assert_restored(restore(workdir), 24)


def test_nothing_is_moved_if_all_checkpoints_are_damaged(workdir):
    truncate(last(workdir, 12) / "train" / "_METADATA")
    truncate(last(workdir, 24) / "weights" / "_METADATA")
    with pytest.raises(WorkdirError, match=r"all checkpoints in .*step 24 \(weights/_M.*step 12 \(train/_M") as error:
        restore(workdir)
    assert "init_from" not in str(error.value) and "config" not in str(error.value)
    assert names(workdir, "last") == ["12", "24"]


def test_a_changed_config_is_not_reported_as_damage(workdir):
    for _ in range(2):
        with pytest.raises(
            WorkdirError, match=r"step 24 .* does not match .*shape \[40, 32\] in the checkpoint"
        ) as error:
            restore(workdir, width=16)
        assert "decoder/kernel" in str(error.value) and "--config.init_from" in str(error.value)
        for checksums in workdir.rglob(CHECKSUMS):
            checksums.unlink()
    assert names(workdir, "last") == ["12", "24"]


def test_a_selected_checkpoint_is_restored_and_newer_ones_are_kept_aside(workdir, caplog):
    assert_restored(restore(workdir, step=12), 12)
    assert names(workdir, "last") == ["12"] and names(workdir, "set_aside") == ["last-24"]
    assert names(workdir, "best") == ["12"]
    assert "moved the checkpoint of step 24" in caplog.text


def test_a_selected_checkpoint_that_is_missing_or_damaged_is_rejected(workdir):
    with pytest.raises(ConfigError, match=r"--checkpoint=13: .* no such step; available are 24, 12"):
        restore(workdir, step=13)
    flip_bit(last(workdir, 12) / "train" / "_METADATA")
    with pytest.raises(WorkdirError, match=r"--checkpoint=12: .*is damaged \(.*train/_METADATA"):
        restore(workdir, step=12)
    assert names(workdir, "last") == ["12", "24"]


def test_unreadable_files_are_not_taken_for_damaged_ones(workdir, monkeypatch):
    from caption_jax.runs import checkpoint_integrity

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_integrity, "_describe_file", refuse)
    with pytest.raises(WorkdirError, match=r"cannot be read \(Permission denied: .*change its permissions"):
        restore(workdir)
    assert names(workdir, "last") == ["12", "24"]


def test_damaged_best_weights_are_set_aside(workdir, caplog):
    flip_bit(next((workdir / "checkpoints" / "best" / "24" / "weights" / "d").iterdir()))
    assert_restored(restore(workdir), 24)
    assert "best weights of step 24 are damaged" in caplog.text
    assert names(workdir, "set_aside") == ["best-24"]
    # `restore` writes them again from the last checkpoint, which has the same weights.
    jax.tree.map(np.testing.assert_array_equal, read_weights(workdir).variables, make_arrays(24))


@pytest.mark.parametrize("kind", DAMAGE)
def test_reading_weights_uses_an_intact_checkpoint_with_a_warning(saved_workdir, tmp_path, kind, caplog):
    file = next((last(saved_workdir) / "weights" / "d").iterdir())
    workdir = copy(saved_workdir, tmp_path / "run")
    DAMAGE[kind](workdir / file.relative_to(saved_workdir))
    read = read_weights(workdir, "last")
    assert read.step == 12
    jax.tree.map(np.testing.assert_array_equal, read.variables, make_arrays(12))
    assert "24 is damaged" in caplog.text
    assert names(workdir, "last") == ["12", "24"]  # reading does not change the workdir
    assert read_weights(workdir, "24").step == 24  # from the best weights of the same step


def test_damage_of_other_items_does_not_prevent_reading_weights(workdir):
    truncate(last(workdir) / "train" / "_METADATA")
    assert read_weights(workdir, "last").step == 24


def test_weights_of_a_step_are_read(workdir):
    save(workdir, 36)
    assert [read_weights(workdir, step).step for step in ("36", "24", "12")] == [36, 24, 12]
    with pytest.raises(MissingFileError, match=r"no checkpoint of step 7 in .*available are 12, 24, 36"):
        read_weights(workdir, "7")
    for kind in ("best", "last"):
        shutil.rmtree(workdir / "checkpoints" / kind)
    with pytest.raises(MissingFileError, match="there are no checkpoints"):
        read_weights(workdir, "7")


def test_objects_of_a_bucket_are_checked_by_size_and_checksum(bucket, saved_workdir):
    """Training in a bucket is tested with an emulator. Here, the checksums that a bucket computes are simulated."""
    from caption_jax.runs.checkpoint_integrity import find_damage, write_checksums

    folder = bucket / "run" / "checkpoints" / "last" / "24"
    for file in list_files(last(saved_workdir)):
        if file.name != CHECKSUMS:
            (folder / file.relative_to(last(saved_workdir)).as_posix()).write_bytes(file.read_bytes())
    write_checksums(folder)
    listed = json.loads((folder / CHECKSUMS).read_text())["files"]
    assert "train/_METADATA" in listed and "_CHECKPOINT_METADATA" not in listed
    assert find_damage(folder, ("weights", "train", "records")) == ""
    name = next(name for name in listed if name.startswith("train/d/"))
    (folder / name).write_bytes(b"\0")
    assert (
        find_damage(folder, ("weights", "train", "records")) == f"{name} has 1 bytes instead of {listed[name]['bytes']}"
    )
    assert find_damage(folder, ("weights",)) == ""
    (folder / name).unlink()
    assert find_damage(folder, ("train",)) == f"{name} is missing"
