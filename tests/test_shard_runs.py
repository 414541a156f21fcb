"""Runs on tar and Parquet shards have the losses of a run on a folder, with one process and with several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from process_group import ONE_IMAGE, PAIR_FLAGS, SLOW_SGD, simulate_devices, start_processes, wait_for_all
from resume_run import log_path, read_rows
from small_run import train_two_steps
from written_shards import FORMATS, copy_to_shards

from input_pipeline.data_spec import DataSpec
from input_pipeline.sources import open_splits


@pytest.fixture(params=FORMATS)
def source(request) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    return request.param


def write_copy(images: Path, folder: Path, source: str) -> Path:
    """Writes the dataset of `small_run` to shards. Returns their folder."""
    return copy_to_shards(open_splits(DataSpec(source="folder", root=str(images))), folder, source)


def list_flags(source: str) -> tuple[str, ...]:
    id_column = "id" if source == "webdataset" else "image_id"
    return (f"--config.data.source={source}", f"--config.data.id_column={id_column}", "--config.data.split_field=")


@pytest.mark.slow
def test_two_steps_on_shards_have_the_losses_of_two_steps_on_a_folder(small_images, tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow reads Parquet files")
    expected = train_two_steps(tmp_path / "run", captions_per_image=1, root=str(small_images))
    assert len(expected) == 3
    for source, id_column in (("webdataset", "id"), ("parquet", "image_id")):
        root = write_copy(small_images, tmp_path / source, source)
        workdir = tmp_path / f"run_{source}"
        data = {"source": source, "root": str(root), "id_column": id_column}
        assert train_two_steps(workdir, captions_per_image=1, **data) == expected


@pytest.mark.long
def test_processes_on_shards_have_the_losses_of_one_process_on_a_folder(launcher, small_images, tmp_path, source):
    shards = write_copy(small_images, tmp_path / "shards", source)
    common = ("--config.train.steps=12", "--config.mesh.data=4", *SLOW_SGD, *ONE_IMAGE)
    reference = tmp_path / "folder"
    process = launcher.start(reference, *PAIR_FLAGS, *common, **simulate_devices(4))
    assert wait_for_all([process], 600) == [0], log_path(reference).read_text()
    expected = read_rows(reference)
    for count in (1, 2, 4):
        workdir = tmp_path / f"processes_{count}"
        flags = (*common, *list_flags(source), f"--config.data.root={shards}")
        processes = start_processes(launcher, [workdir] * count, [flags] * count, **simulate_devices(4 // count))
        assert wait_for_all(processes, 600) == [0] * count, log_path(workdir).read_text()
        actual = read_rows(workdir)
        assert [row[:2] for row in actual] == [row[:2] for row in expected]
        for (step, split, values), (_, _, others) in zip(actual, expected, strict=True):
            np.testing.assert_allclose(values["loss"], others["loss"], rtol=0, atol=1e-5, err_msg=f"{split}, {step}")
