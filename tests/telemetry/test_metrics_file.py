"""metrics.jsonl remains valid after kills and resumed runs."""

from __future__ import annotations

import json
import math

import pytest

from caption_jax.telemetry.metrics_file import MetricsFile, Row, read_metrics


def read_steps_and_splits(path) -> list[tuple[int, str]]:
    return [(row.step, row.split) for row in read_metrics(path)]


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    """An empty folder on a local disk, or on a bucket, where files cannot be appended to."""
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket")


def test_rows_are_read_as_written(folder):
    path = folder / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(Row(50, "train", {"loss": 4.25}))
    file.append(Row(50, "val", {"CIDEr-D": 0.1, "loss": math.nan}))
    first, second = read_metrics(path)
    assert first == Row(50, "train", {"loss": 4.25})
    assert second.values["CIDEr-D"] == 0.1
    assert math.isnan(second.values["loss"])
    assert json.loads(path.read_text().splitlines()[1])["values"]["loss"] is None  # NaN is not valid JSON


def test_resuming_from_a_step_drops_later_rows(folder):
    path = folder / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (50, 100, 150):
        file.append(Row(step, "train", {"loss": 1.0}))
    file.append(Row(100, "val", {"CIDEr-D": 0.5}))
    resumed = MetricsFile(path, start_step=100)
    resumed.append(Row(150, "train", {"loss": 2.0}))
    assert read_steps_and_splits(path) == [(50, "train"), (100, "train"), (100, "val"), (150, "train")]
    assert read_metrics(path)[-1].values["loss"] == 2.0
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_starting_at_step_0_drops_all_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(Row(50, "train", {"loss": 1.0}))
    MetricsFile(path, start_step=0)
    assert read_metrics(path) == []


def test_a_truncated_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(Row(50, "train", {"loss": 1.0}))
    with path.open("a") as file:
        file.write('{"step": 100, "split": "tra')
    assert read_steps_and_splits(path) == [(50, "train")]
    MetricsFile(path, start_step=50).append(Row(100, "train", {"loss": 2.0}))
    assert read_steps_and_splits(path) == [(50, "train"), (100, "train")]


def test_the_error_for_an_invalid_line_names_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "values": {}}\nhello\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_zeros_at_the_end_which_a_power_failure_leaves_are_repaired_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(Row(1, "train", {"loss": 2.0}).to_line() + Row(2, "train", {"loss": 1.0}).to_line() + "\0" * 500)
    assert [row.step for row in read_metrics(path)] == [1, 2]
    metrics = MetricsFile(path, start_step=1)
    metrics.append(Row(2, "train", {"loss": 1.5}))
    metrics.sync()
    assert [row.values["loss"] for row in read_metrics(path)] == [2.0, 1.5] and "\0" not in path.read_text()


def test_a_line_that_a_full_disk_has_cut_off_is_repaired_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(Row(1, "train", {"loss": 2.0}).to_line() + Row(2, "train", {"loss": 1.0}).to_line()[:-9])
    MetricsFile(path, start_step=2).append(Row(2, "train", {"loss": 1.5}))
    assert [row.values["loss"] for row in read_metrics(path)] == [2.0, 1.5]
