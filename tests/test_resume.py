"""A resumed run gives the same result as an uninterrupted run, however it was stopped."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import small_run
from killed_runs import kill_at_random
from ml_collections import ConfigDict
from resume_run import (
    CHECKPOINT_EVERY,
    STEPS,
    assert_same_result,
    assert_same_state,
    has_trained,
    is_writing,
    list_saved_steps,
    log_path,
    read_rows,
)

from caption_jax.cli.exit_status import STOPPED
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import start_experiment
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import fingerprint, flatten_arrays, unflatten_arrays
from caption_jax.runs.workdir import read_description
from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate


@pytest.fixture(scope="module")
def uninterrupted_workdir(launcher, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    launcher.complete(workdir)
    assert list_saved_steps(workdir)[-1] == STEPS
    assert [step for step, split, _ in read_rows(workdir) if split == "train"] == list(range(1, STEPS + 1))
    return workdir


@pytest.mark.slow
def test_a_run_killed_while_writing_a_checkpoint_resumes(launcher, uninterrupted_workdir, tmp_path):
    workdir = tmp_path / "run"
    process = launcher.stop_when(workdir, is_writing(2 * CHECKPOINT_EVERY), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert CHECKPOINT_EVERY <= list_saved_steps(workdir)[-1] < STEPS
    assert "resuming from step" in launcher.complete(workdir)
    assert_same_result(workdir, uninterrupted_workdir)


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_at_random_gives_the_result_of_an_undisturbed_run(launcher, tmp_path):
    """A short version of `tests/long/test_kills.py`."""
    summary = kill_at_random(launcher, "frozen", tmp_path, seed=1, kills=2, new_programs=0)
    assert summary.startswith("frozen: 2 processes of ")


@pytest.mark.slow
def test_a_terminated_run_saves_a_checkpoint_and_resumes_with_a_different_number_of_workers(
    launcher, uninterrupted_workdir, tmp_path
):
    workdir = tmp_path / "run"
    process = launcher.stop_when(workdir, has_trained(12), signal.SIGTERM)
    log = log_path(workdir).read_text()
    assert process.returncode == STOPPED, log
    step = list_saved_steps(workdir)[-1]
    assert f"stop requested: saved step {step}" in log
    assert 12 <= step < STEPS and read_rows(workdir)[-1][0] == step
    assert not (workdir / "eval_val.json").exists()
    log = launcher.complete(workdir, "--config.data.workers=3")
    assert "config.data.workers changed since this run was started: 1 -> 3" in log
    assert f"resuming from step {step} of {STEPS}" in log
    assert_same_result(workdir, uninterrupted_workdir)


@pytest.fixture
def trained_workdir(small_workdir, tmp_path) -> Path:
    """A copy of the workdir of `small_run`, which the test may modify."""
    return Path(shutil.copytree(small_workdir, tmp_path / "trained", ignore=shutil.ignore_patterns("compile_cache")))


@pytest.fixture
def config(small_images) -> ConfigDict:
    """The config of `small_run` with its dataset."""
    config = small_run.get_config()
    config.data.root = str(small_images)
    return config


def test_a_run_resumes_from_its_checkpoint_bit_for_bit(small_workdir, trained_workdir, config):
    previous_step, last_step = list_saved_steps(trained_workdir)
    shutil.rmtree(trained_workdir / "checkpoints" / "last" / str(last_step))
    assert list_saved_steps(trained_workdir, "best")[-1] > previous_step  # newer than the checkpoint to resume from
    train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    assert list_saved_steps(trained_workdir) == [previous_step, last_step]
    assert_same_state(trained_workdir, small_workdir)
    assert_model_is_best_checkpoint(trained_workdir)


def assert_model_is_best_checkpoint(workdir: Path) -> None:
    """Asserts that the model folder of a workdir has the weights of the best checkpoint."""
    loaded, best = read_model(workdir), read_weights(workdir)
    assert loaded.weights.step == best.step
    assert fingerprint(loaded.weights.variables) == fingerprint(unflatten_arrays(flatten_arrays(best.variables)))
    assert (workdir / f"model-{best.step}" / "model.safetensors").exists()


def test_the_best_model_of_a_finished_run_is_loaded(small_workdir):
    assert_model_is_best_checkpoint(small_workdir)


def test_resuming_a_run_from_an_earlier_release_writes_its_model_folder(trained_workdir, config):
    shutil.rmtree(next(trained_workdir.glob("model-*")))
    (trained_workdir / "best_model.json").unlink()
    train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    assert_model_is_best_checkpoint(trained_workdir)


@pytest.mark.slow
def test_the_last_model_is_loaded_if_there_was_no_evaluation(config, tmp_path, compile_cache, small_images):
    data = Path(shutil.copytree(small_images, tmp_path / "data"))
    (data / "captions.csv").write_text((data / "captions.csv").read_text().replace(",val", ",train"))
    config.data.root = str(data)
    config.train.update({"steps": 4, "checkpoint_every": 3})
    assert train_and_evaluate(RunSpec.from_config(config), tmp_path / "run") is None
    assert read_model(tmp_path / "run").weights.step == 4
    assert {path.name for path in (tmp_path / "run").glob("model-*")} == {"model-3", "model-4"}


def test_a_run_without_checkpoints_does_not_replace_an_existing_model(trained_workdir, config):
    shutil.rmtree(trained_workdir / "checkpoints")
    config.train.log_every = 7
    before = (trained_workdir / "config.json").read_text()
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    assert (trained_workdir / "config.json").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("is_profiled", [False, True])
def test_a_nonfinite_loss_stops_the_run_and_keeps_the_last_checkpoint(trained_workdir, config, is_profiled):
    last_step = list_saved_steps(trained_workdir)[-1]
    config.optimizer.learning_rate = 1e30
    config.train.update({"steps": last_step + 9, "checkpoint_every": 1, "eval_every": 1})
    config.train.profile.update({"start": last_step, "steps": 100 if is_profiled else 0})
    with pytest.raises(NonFiniteLossError, match=rf"step {last_step + 1}: .*Images of the step: \['?0") as error:
        train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    assert "config.optimizer.learning_rate" in str(error.value)
    assert list_saved_steps(trained_workdir)[-1] == read_weights(trained_workdir, "last").step == last_step
    for kind in ("best", "last"):
        weights = read_weights(trained_workdir, kind)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights.variables))
    traces = list((trained_workdir / "profile").rglob("*.xplane.pb"))
    assert bool(traces) == is_profiled  # the trace is written even if it is incomplete


@pytest.mark.slow
def test_evaluations_during_the_warm_up_do_not_count_towards_early_stopping(config, compile_cache, tmp_path):
    config.optimizer.update({"learning_rate": 0.0, "warmup_steps": 5})
    config.model.encoder.norm_momentum = 1.0  # the weights do not change, so the first score remains the best
    config.train.update({"steps": 40, "eval_every": 2, "checkpoint_every": 20, "patience": 2})
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    assert list_saved_steps(tmp_path) == [2, 8]  # the evaluations at steps 6 and 8 are the first that count


@pytest.mark.slow
def test_a_run_that_stopped_early_resumes_only_with_more_patience(config, compile_cache, tmp_path):
    config.optimizer.update({"learning_rate": 0.0, "warmup_steps": 0})  # evaluations during warm-up do not count
    config.model.encoder.norm_momentum = 1.0  # the weights do not change, so the first score remains the best
    config.train.update({"steps": 40, "eval_every": 2, "checkpoint_every": 20, "patience": 2})
    results = train_and_evaluate(RunSpec.from_config(config), tmp_path)
    assert results.protocol["step"] == 2
    assert list_saved_steps(tmp_path) == [2, 6]
    before = read_rows(tmp_path)
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    assert read_rows(tmp_path) == before and list_saved_steps(tmp_path) == [2, 6]

    config.train.patience = 3
    train_and_evaluate(RunSpec.from_config(config), tmp_path)
    assert list_saved_steps(tmp_path) == [6, 8]


def test_changes_that_do_not_fit_the_checkpoint_are_rejected(trained_workdir, config):
    config.seed = 1
    config.model.decoder.width = 32
    with pytest.raises(ValueError) as error:
        train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    for fragment in ("seed: 0 -> 1", "model.decoder.width: 16 -> 32", f"--config.init_from={trained_workdir}"):
        assert fragment in str(error.value)
    config.seed, config.model.decoder.width = 0, 16
    config.optimizer.ema = 0.5
    with pytest.raises(ValueError, match="does not match the parameters of this config") as error:
        train_and_evaluate(RunSpec.from_config(config), trained_workdir)
    assert f"--config.init_from={trained_workdir}" in str(error.value)
    assert read_weights(trained_workdir).step == list_saved_steps(trained_workdir)[-1]


def test_a_run_starts_from_scratch_in_a_folder_without_a_checkpoint_or_model(config, tmp_path):
    for name in ("model.json", "config.json"):  # truncated, as if a run had been killed during startup
        (tmp_path / name).write_text("{")
    experiment = start_experiment(RunSpec.from_config(config), tmp_path)
    description = read_description(tmp_path)
    assert description.spec == RunSpec.from_config(config)
    assert description.model_settings == experiment.description.model_settings
