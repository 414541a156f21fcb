"""The space that a run needs is compared with the free space at its start, and is part of messages about full disks."""

from __future__ import annotations

import errno
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from caption_jax.errors import StorageError, WorkdirError
from caption_jax.runs.disk_use import DiskUse

WEIGHTS = {"params": np.zeros(250_000, np.float32)}  # 1 MB
TRAIN = {"moments": np.zeros(500_000, np.float32), "raw": np.zeros(250_000, np.float32)}  # 3 MB


@pytest.fixture
def free(monkeypatch) -> SimpleNamespace:
    """The free space of the disk, in bytes, which the test sets."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=disk.free, total=10**9))
    return disk


def test_a_run_without_space_for_one_checkpoint_is_refused_with_the_sizes(tmp_path, free):
    free.free = 5_900_000
    with pytest.raises(StorageError) as error:
        DiskUse(epath.Path(tmp_path)).check(WEIGHTS, TRAIN)
    assert str(error.value) == (
        f"--workdir={tmp_path}: the disk has no space for a checkpoint: 6.0 MB are needed (4.0 MB per checkpoint, "
        "1.0 MB each for the best weights and the model), but only 5.9 MB are free: free space, or use another "
        "--workdir"
    )


def test_a_warning_says_that_the_disk_will_be_full(tmp_path, free, caplog):
    free.free = 17_900_000
    with caplog.at_level(logging.WARNING):
        DiskUse(epath.Path(tmp_path)).check(WEIGHTS, TRAIN)
    assert "will need up to 18.0 MB (4.0 MB per checkpoint" in caplog.text and "17.9 MB are free" in caplog.text


@pytest.mark.parametrize("case", ["enough", "existing files", "complete"])
def test_a_run_that_fits_starts_without_a_warning(tmp_path, free, caplog, case):
    free.free = 18_000_000
    if case == "existing files":
        free.free = 17_000_000
        for folder in ("checkpoints/last/5", "model-5"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "data").write_bytes(bytes(500_000))
    elif case == "complete":
        free.free = 0
    with caplog.at_level(logging.WARNING):
        DiskUse(epath.Path(tmp_path)).check(WEIGHTS, TRAIN, is_complete=case == "complete")
    assert not caplog.text


@pytest.mark.parametrize(
    ("file", "size"),
    [("checkpoints/last/5.tmp/d/a", "about 4.0 MB"), ("model-5/model.safetensors", "about 1.0 MB"), ("eval.json", "")],
)
def test_an_error_of_a_full_disk_has_the_size_of_what_was_written(tmp_path, free, file, size):
    free.free = 10**9
    use = DiskUse(epath.Path(tmp_path))
    use.check(WEIGHTS, TRAIN)
    free.free = 0
    with pytest.raises(StorageError) as error, use.reported_faults():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / file))
    needed = f"{size} are needed, " if size else ""
    assert str(error.value).startswith(f"{tmp_path / file}: No space left on device ({needed}0 kB of 1.00 GB are free)")


@pytest.mark.parametrize("is_created_again", [False, True])
def test_a_deleted_workdir_is_reported_even_if_a_library_creates_it_again(tmp_path, is_created_again):
    workdir = epath.Path(tmp_path) / "run"
    workdir.mkdir()
    use = DiskUse(workdir)
    with pytest.raises(FileNotFoundError), use.reported_faults():
        (workdir / "metrics.jsonl").read_text()
    workdir.rename(epath.Path(tmp_path) / "moved")  # so that the file system does not use its number again
    if is_created_again:
        workdir.mkdir()
    with pytest.raises(WorkdirError, match=r"--workdir=.*/run was deleted"), use.reported_faults():
        (workdir / "metrics.jsonl").read_text()
