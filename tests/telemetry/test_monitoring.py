"""What a run leaves for its reader: metrics.jsonl, event files, log lines and the progress line."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
from absl import logging

from caption_jax.telemetry.clock import Clock
from caption_jax.telemetry.metrics_file import MetricsFile, Row, read_metrics
from caption_jax.telemetry.monitoring import (
    Monitor,
    ProgressLine,
    describe_progress,
    keep_tensorflow_off_accelerators,
    quiet_libraries,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal; `lines` is what a person sees on it."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [re.split(r"\r\x1b\[K", line)[-1] for line in self.getvalue().split("\n")]


def steps_and_splits(path) -> list[tuple[int, str]]:
    return [(row.step, row.split) for row in read_metrics(path)]


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(Row(50, "train", {"loss": 4.25}))
    file.append(Row(50, "val", {"CIDEr-D": 0.1, "loss": math.nan}))
    first, second = read_metrics(path)
    assert first == Row(50, "train", {"loss": 4.25})
    assert second.values["CIDEr-D"] == 0.1
    assert math.isnan(second.values["loss"])
    assert json.loads(path.read_text().splitlines()[1])["values"]["loss"] is None  # NaN is no JSON


def test_going_on_from_a_step_drops_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    for step in (50, 100, 150):
        file.append(Row(step, "train", {"loss": 1.0}))
    file.append(Row(100, "val", {"CIDEr-D": 0.5}))
    resumed = MetricsFile(path, start_step=100)
    resumed.append(Row(150, "train", {"loss": 2.0}))
    assert steps_and_splits(path) == [(50, "train"), (100, "train"), (100, "val"), (150, "train")]
    assert read_metrics(path)[-1].values["loss"] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_in_a_folder_without_checkpoints_starts_a_new_curve(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(Row(50, "train", {"loss": 1.0}))
    MetricsFile(path, start_step=0)
    assert read_metrics(path) == []


def test_a_line_cut_off_by_a_kill_does_no_harm(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(Row(50, "train", {"loss": 1.0}))
    with path.open("a") as file:
        file.write('{"step": 100, "split": "tra')
    assert steps_and_splits(path) == [(50, "train")]
    MetricsFile(path, start_step=50).append(Row(100, "train", {"loss": 2.0}))
    assert steps_and_splits(path) == [(50, "train"), (100, "train")]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "values": {}}\nhello\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_progress_tells_speed_waiting_and_arrival():
    times = iter([0.0, 0.0, 0.0, 3.0, 8.0])
    clock = Clock(3750, images_per_step=32, now=lambda: next(times))
    assert describe_progress(0, 3750, 8.0, clock) == "step 0/3750 (0%)  loss 8.0000"
    with clock.waiting():
        pass
    clock.tick(100)
    text = describe_progress(100, 3750, 2.34567, clock)
    assert text == "step 100/3750 (2%)  loss 2.3457  400 images/s  input wait 38%  ETA 4:52"


def test_the_progress_line_is_one_line_and_log_lines_stand_above_it():
    terminal = Terminal()
    handler = logging.get_absl_handler()
    line = ProgressLine(terminal)
    line.draw("step 1/3")
    line.draw("step 2/3")
    assert terminal.lines() == ["step 2/3"]
    assert handler.filter(logging.logging.makeLogRecord({"msg": "saved", "levelno": 20, "pathname": "here.py"}))
    terminal.write("saved\n")
    line.draw("step 3/3")
    line.close()
    assert terminal.lines() == ["saved", "step 3/3", ""]
    assert line not in handler.filters


def test_the_progress_line_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    ProgressLine(terminal).draw("x" * 100)
    assert len(terminal.lines()[0]) < 40


@pytest.mark.parametrize(
    ("path", "level", "shown"),
    [
        ("/lib/site-packages/orbax/checkpoint/manager.py", "INFO", False),
        ("/lib/site-packages/orbax/checkpoint/manager.py", "WARNING", True),
        ("/home/me/jax/caption_jax/training/loop.py", "INFO", True),
        ("/lib/site-packages/clu/metric_writers/logging_writer.py", "INFO", True),
    ],
)
def test_the_log_is_ours_and_the_warnings_of_libraries(path, level, shown):
    handler = logging.get_absl_handler()
    before = list(handler.filters)
    quiet_libraries()
    record = logging.logging.makeLogRecord({"pathname": path, "levelno": logging.logging.getLevelNamesMapping()[level]})
    assert bool(handler.filter(record)) is shown
    handler.filters[:] = before


def test_other_processes_write_nothing(tmp_path):
    monitor = Monitor(tmp_path, {"seed": 0}, is_main_process=False, total_steps=10)
    monitor.scalars(1, {"loss": 1.0}, "train")
    monitor.pictures(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    monitor.progress(1, 1.0, Clock(10, 1))
    monitor.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A workdir in which a monitor wrote one of each kind, on a terminal."""
    folder = tmp_path_factory.mktemp("run")
    terminal = Terminal()
    monitor = Monitor(folder, {"seed": 7}, total_steps=100, stream=terminal)
    monitor.scalars(50, {"loss": np.float32(2.5)}, "train")
    monitor.progress(50, 2.5, Clock(100, 1))
    monitor.scalars(50, {"CIDEr-D": 0.25}, "val")
    monitor.pictures(50, {"samples": np.full((4, 6, 3), 200, np.uint8)})
    monitor.close()
    monitor.close()  # again does nothing
    return folder, terminal


def test_tensorboard_gets_scalars_pictures_and_the_config(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    folder, _ = run_folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    tags = set(events.Tags()["tensors"])
    assert {"train/loss", "val/CIDEr-D", "samples", "config"} <= tags
    loss = events.Tensors("train/loss")[0]
    assert (loss.step, make_ndarray(loss.tensor_proto)) == (50, 2.5)
    width, height, png = events.Tensors("samples")[0].tensor_proto.string_val
    assert (width, height, png[:4]) == (b"6", b"4", b"\x89PNG")
    assert b'"seed": 7' in events.Tensors("config")[0].tensor_proto.string_val[0]


def test_the_metrics_file_gets_the_same_scalars(run_folder):
    folder, terminal = run_folder
    assert read_metrics(folder / "metrics.jsonl") == [
        Row(50, "train", {"loss": 2.5}),
        Row(50, "val", {"CIDEr-D": 0.25}),
    ]
    assert "step 50/100 (50%)  loss 2.5000" in terminal.getvalue()


def test_tensorflow_is_told_to_leave_accelerators_alone(monkeypatch):
    import tensorflow as tf

    hidden = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind)))
    keep_tensorflow_off_accelerators()
    assert sorted(hidden) == [([], "GPU"), ([], "TPU")]


def test_tensorflow_that_holds_an_accelerator_is_an_error(monkeypatch):
    import tensorflow as tf

    def too_late(devices, kind):
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    keep_tensorflow_off_accelerators()  # set up, but without one
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu:0"])
    with pytest.raises(RuntimeError, match="holds a GPU"):
        keep_tensorflow_off_accelerators()
