"""Faults of the data, the gradients and the input of a training run, in real processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from resume_run import (
    STEPS,
    assert_same_result,
    assert_same_state,
    list_saved_steps,
    log_path,
    read_rows,
)
from tiers import slow_or_long

from caption_jax.cli.exit_status import FAILURE, STOPPED
from caption_jax.runtime.watchdog import HUNG


@pytest.fixture
def data(tmp_path, small_images) -> Path:
    return Path(shutil.copytree(small_images, tmp_path / "data"))


def read_errors(workdir: Path) -> list[str]:
    return [line for line in log_path(workdir).read_text().splitlines() if line.startswith("error: ")]


@pytest.mark.long
def test_a_run_whose_data_changed_names_the_changes_or_continues_if_allowed(launcher, data, tmp_path):
    launcher, workdir = dataclasses.replace(launcher, data=data), tmp_path / "run"
    steps = ("--config.train.steps=30",)
    assert launcher.start(workdir, *steps, "--max_steps_this_run=10").wait() == STOPPED
    captions = data / "captions.csv"
    captions.write_text(captions.read_text().replace("00.png,A red box", "00.png,A green box"))
    (data / "images" / "08.png").write_bytes((data / "images" / "09.png").read_bytes() + b"\0")
    assert launcher.start(workdir, *steps).wait() == FAILURE
    (error,) = read_errors(workdir)
    assert "train: 1 image has other captions: 00.png" in error
    assert "val: 1 image was replaced (its size differs): 08.png" in error and "--allow_data_change" in error
    assert list_saved_steps(workdir) == [10]

    captions.write_text(captions.read_text().replace("\n10.png", "\n12.png", 1).replace(",test", ",train"))
    shutil.copy(data / "images" / "10.png", data / "images" / "12.png")
    assert launcher.start(workdir, *steps, "--allow_data_change", "--max_steps_this_run=1").wait() == STOPPED
    assert "--allow_data_change: the data has changed: train: 3 images are new: " in log_path(workdir).read_text()
    launcher.complete(workdir, *steps)  # with the data that has been accepted
    assert list_saved_steps(workdir)[-1] == 30


@pytest.mark.long
def test_a_run_continues_with_data_that_was_moved_and_touched(launcher, data, tmp_path):
    launcher, workdir = dataclasses.replace(launcher, data=data), tmp_path / "run"
    steps = ("--config.train.steps=20",)
    assert launcher.start(workdir, *steps, "--max_steps_this_run=10").wait() == STOPPED
    (workdir / "data_manifest.npz").rename(tmp_path / "manifest.npz")  # as if an older release had started the run
    assert launcher.start(workdir, *steps, "--max_steps_this_run=3").wait() == STOPPED
    assert "did not record its data" in log_path(workdir).read_text()
    assert (workdir / "data_manifest.npz").exists()
    moved = Path(shutil.move(data, tmp_path / "moved"))
    for path in (moved / "images").iterdir():
        path.touch()
    dataclasses.replace(launcher, data=moved).complete(workdir, *steps)
    launcher = dataclasses.replace(launcher, data=Path(shutil.copytree(moved, data)))
    launcher.complete(tmp_path / "undisturbed", *steps)
    assert_same_result(workdir, tmp_path / "undisturbed")


@pytest.mark.parametrize("number", slow_or_long([1, 2], slow=[1]))
def test_an_unreadable_validation_split_does_not_end_training(launcher, data, tmp_path, number):
    captions = data / "captions.csv"
    if number == 1:
        lines = captions.read_text().splitlines(keepends=True)
        captions.write_text("".join(line for line in lines if not line.startswith("09.png")))
    for name in ("08.png", "09.png"):
        (data / "images" / name).write_bytes(b"not an image")
    launcher, workdir = dataclasses.replace(launcher, data=data), tmp_path / "run"
    log = launcher.complete(workdir, "--config.train.steps=20", "--config.train.sample_images=1")
    assert f"none of the {number} images of the split val could be read" in log and "08.png: " in log
    evaluation = json.loads((workdir / "eval_val.json").read_text())
    assert evaluation["protocol"]["unreadable_images"] == number
    assert list(evaluation["protocol"]["unreadable"]) == ["08.png", "09.png"][:number]
    assert list_saved_steps(workdir)[-1] == 20

    assert launcher.start(workdir, "--mode=evaluate").wait() == FAILURE
    assert read_errors(workdir)[0].startswith(f"error: none of the {number} images of the split val could be read")


@pytest.mark.slow
def test_an_unreadable_training_split_ends_in_one_line(launcher, data, tmp_path):
    for path in (data / "images").iterdir():
        path.write_bytes(b"not an image")
    workdir = tmp_path / "run"
    assert dataclasses.replace(launcher, data=data).start(workdir).wait() == FAILURE
    (error,) = read_errors(workdir)
    assert error.startswith("error: none of the first 8 images of the split train could be read, such as ")
    assert log_path(workdir).read_text().splitlines()[-1] == error


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_and_a_resumed_run_is_the_same(faulty, tmp_path):
    """The gradient is NaN at steps 4, 5 and 12. The log names them with their images."""
    flags = ("--config.train.steps=20", "--config.train.non_finite=skip", "--config.train.max_skipped_steps=2")
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "run"
    assert faulty.start(undisturbed, *flags, FAULT="nan_gradients").wait() == 0, log_path(undisturbed).read_text()
    log = log_path(undisturbed).read_text()
    for text in (
        "step 4 skipped (1 so far, 1 in a row)",
        "step 5 skipped (2 so far, 2 in a row)",
        "step 12 skipped (3",
    ):
        assert text in log
    assert log.count("Images of the step: ['0") == 3
    assert read_rows(undisturbed)[-2][2]["skipped_steps"] == 3
    # Stops between the two steps in a row.
    assert faulty.start(workdir, *flags, "--max_steps_this_run=4", FAULT="nan_gradients").wait() == STOPPED
    assert faulty.start(workdir, *flags, FAULT="nan_gradients").wait() == 0
    assert_same_state(workdir, undisturbed)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_first_checkpoint(faulty, tmp_path):
    workdir = tmp_path / "run"
    assert faulty.start(workdir, FAULT="nan_gradients").wait() == FAILURE
    (error,) = read_errors(workdir)
    assert error.startswith("error: step 4: loss is ") and "gradient norm is nan" in error
    assert "There is no checkpoint yet: the same command starts from step 0." in error
    assert not list_saved_steps(workdir)


WATCHDOG = ("--config.train.watchdog_seconds=2", "--config.train.watchdog_factor=2")


@pytest.mark.parametrize("fault", slow_or_long(["hanging_input", "hanging_callback"], slow=["hanging_callback"]))
def test_a_step_that_hangs_is_reported_and_ends_the_process_if_configured(faulty, launcher, tmp_path, fault):
    workdir = tmp_path / "run"
    assert launcher.start(workdir, "--max_steps_this_run=5").wait() == STOPPED
    flags = (*WATCHDOG, "--config.train.checkpoint_every=100", "--config.train.watchdog=end")
    process = faulty.start(workdir, *flags, FAULT=fault)
    assert process.wait(timeout=300) == HUNG, log_path(workdir).read_text()
    log = log_path(workdir).read_text()
    assert "Stacks of all threads" in log and "thread MainThread" in log and "in hang" in log
    assert read_errors(workdir)[0].startswith("error: no training step for ")
    assert list_saved_steps(workdir) == [5]
    launcher.complete(workdir)
    assert list_saved_steps(workdir)[-1] == STEPS


@pytest.mark.long
def test_a_step_that_is_slow_once_is_reported_and_training_continues(faulty, tmp_path):
    workdir = tmp_path / "run"
    process = faulty.start(workdir, *WATCHDOG, "--config.train.steps=20", FAULT="slow_input")
    assert process.wait(timeout=300) == 0
    log = log_path(workdir).read_text()
    assert "the watchdog: no training step for " in log and "the watchdog: a step ended after " in log
    assert list_saved_steps(workdir)[-1] == 20
