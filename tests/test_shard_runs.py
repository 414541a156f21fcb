"""Runs on shards have the losses of a run on a folder, with one process and with several."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from process_group import ONE_IMAGE, PAIR_FLAGS, SLOW_SGD, simulate_devices, start_processes, wait_for_all
from resume_run import RunLauncher, log_path, read_rows
from small_run import train_two_steps
from tiers import slow_or_long
from written_shards import copy_to_shards

from input_pipeline.data_spec import DataSpec
from input_pipeline.prepared.preparation import Request, prepare
from input_pipeline.sources import open_splits, read_splits

KEYS = {  # of `config.data`, by source
    "webdataset": {"id_column": "id", "split_field": ""},
    "parquet": {"id_column": "image_id", "split_field": ""},
    "prepared": {"split_field": ""},
}
COUNTS = (1, 2, 4)
COMMON = ("--config.train.steps=6", "--config.mesh.data=4", *SLOW_SGD, *ONE_IMAGE)


def write_copies(images: Path, folder: Path) -> None:
    """Writes the dataset of `small_run` as tar files, Parquet files and prepared images."""
    pytest.importorskip("pyarrow", reason="pyarrow writes Parquet files")
    pytest.importorskip("array_record", reason="array_record writes prepared images")
    spec = DataSpec(source="folder", root=str(images), image_size=32, workers=0)
    folder.mkdir()
    for source in ("webdataset", "parquet"):
        copy_to_shards(open_splits(spec), folder / source, source)
    prepare(Request(folder / "prepared", spec), read_splits(spec))


@pytest.fixture(scope="session")
def copies(build_once, small_images) -> Path:
    """A folder with a subfolder for each source. Tests must not modify it."""
    return build_once("data/boxes_in_shards", lambda folder: write_copies(small_images, folder))


@pytest.fixture(scope="session")
def folder_run(build_once, launcher) -> Path:
    """The workdir of a run on the folder, in one process. Tests must not modify it."""

    def train(workdir: Path) -> None:
        process = launcher.start(workdir, *PAIR_FLAGS, *COMMON, **simulate_devices(4))
        assert wait_for_all([process], 600) == [0], log_path(workdir).read_text()

    return build_once("trained/on_folder", train)


def train_in_processes(launcher: RunLauncher, workdir: Path, count: int, *flags: str) -> None:
    """Trains in `count` processes, which have four devices together."""
    environment = simulate_devices(4 // count)
    processes = start_processes(launcher, [workdir] * count, [(*COMMON, *flags)] * count, **environment)
    assert wait_for_all(processes, 600) == [0] * count, log_path(workdir).read_text()


def assert_equal_losses(workdir: Path, reference: Path) -> None:
    actual, expected = read_rows(workdir), read_rows(reference)
    assert [row[:2] for row in actual] == [row[:2] for row in expected] and len(expected) > 6
    for (step, split, values), (_, _, others) in zip(actual, expected, strict=True):
        np.testing.assert_allclose(values["loss"], others["loss"], rtol=0, atol=1e-5, err_msg=f"{split}, {step}")


@pytest.mark.slow
def test_two_steps_on_shards_have_the_losses_of_two_steps_on_a_folder(small_images, copies, tmp_path):
    expected = train_two_steps(tmp_path / "run", captions_per_image=1, root=str(small_images))
    assert len(expected) == 3
    for source, keys in KEYS.items():
        data = {**keys, "source": source, "root": str(copies / source)}
        assert train_two_steps(tmp_path / source, captions_per_image=1, **data) == expected


@pytest.mark.parametrize(
    ("source", "count"),
    slow_or_long(
        [(source, count) for source in KEYS for count in COUNTS],
        slow=[("webdataset", 2), ("parquet", 4), ("prepared", 2)],
    ),
)
def test_processes_on_shards_have_the_losses_of_one_process_on_a_folder(
    launcher, folder_run, copies, tmp_path, source, count
):
    keys = [f"--config.data.{key}={value}" for key, value in KEYS[source].items()]
    root = f"--config.data.root={copies / source}"
    train_in_processes(launcher, tmp_path / "run", count, f"--config.data.source={source}", root, *keys)
    assert_equal_losses(tmp_path / "run", folder_run)


@pytest.mark.slow
def test_two_processes_on_a_mixture_with_a_shuffle_window_have_the_losses_of_one(launcher, copies, tmp_path):
    launcher = dataclasses.replace(launcher, config=f"{launcher.config}:mixture")
    roots = {"tar": "webdataset", "rows": "parquet"}
    flags = [f"--config.data.mixture.{part}.root={copies / source}" for part, source in roots.items()]
    for count in (1, 2):
        train_in_processes(launcher, tmp_path / f"processes_{count}", count, *flags)
    assert_equal_losses(tmp_path / "processes_2", tmp_path / "processes_1")
    # Three of four images of each epoch, which has as many as both parts together.
    assert "part tar of the mixture: 12 of the 16 training images" in log_path(tmp_path / "processes_1").read_text()
