"""A run whose newest checkpoint or best model is damaged ends like an undisturbed run, or with what is intact."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import small_run
from damaged_weights import DAMAGE, flip_bit
from resume_run import (
    assert_same_result,
    assert_same_state,
    list_saved_steps,
    read_rows,
)

from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import fingerprint, flatten_arrays, unflatten_arrays
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate
from caption_jax.training.start_options import StartOptions


@pytest.fixture
def trained_workdir(small_workdir, tmp_path) -> Path:
    """A copy of the workdir of `small_run`, which the test may modify."""
    return Path(shutil.copytree(small_workdir, tmp_path / "trained", ignore=shutil.ignore_patterns("compile_cache")))


@pytest.fixture
def spec(small_images) -> RunSpec:
    config = small_run.get_config()
    config.data.root = str(small_images)
    return RunSpec.from_config(config)


def damage_arrays(checkpoint: Path, kind: str = "flipped bit") -> None:
    """Damages the largest file of the weights of a checkpoint."""
    DAMAGE[kind](max((checkpoint / "weights").rglob("d/*"), key=lambda path: path.stat().st_size))


@pytest.mark.slow
def test_a_run_repeats_the_steps_since_the_newest_intact_checkpoint(small_workdir, trained_workdir, spec, caplog):
    previous_step, last_step = list_saved_steps(trained_workdir)
    damage_arrays(trained_workdir / "checkpoints" / "last" / str(last_step))
    train_and_evaluate(spec, trained_workdir)
    assert f"so up to {last_step - previous_step} steps are repeated" in caplog.text
    assert list_saved_steps(trained_workdir) == [previous_step, last_step]
    assert_same_state(trained_workdir, small_workdir)
    assert_same_model(trained_workdir, small_workdir)
    assert (trained_workdir / "checkpoints" / "set_aside" / f"last-{last_step}").is_dir()


@pytest.mark.slow
def test_a_run_resumes_from_a_selected_checkpoint(small_workdir, trained_workdir, spec):
    previous_step, last_step = list_saved_steps(trained_workdir)
    train_and_evaluate(spec, trained_workdir, options=StartOptions(checkpoint=previous_step))
    assert list_saved_steps(trained_workdir) == [previous_step, last_step]
    assert_same_state(trained_workdir, small_workdir)
    assert_same_model(trained_workdir, small_workdir)


def test_a_damaged_model_is_written_again_from_its_checkpoint(small_workdir, trained_workdir, spec, caplog):
    step = read_model(trained_workdir).weights.step
    flip_bit(trained_workdir / f"model-{step}" / "model.safetensors")
    assert read_model(trained_workdir).weights.step == step  # from the checkpoint
    assert "model.safetensors is corrupted" in caplog.text and "reading the equal weights" in caplog.text
    train_and_evaluate(spec, trained_workdir)
    assert "it is written again from a checkpoint" in caplog.text
    assert_same_model(trained_workdir, small_workdir)


def test_training_rejects_the_best_checkpoint_as_its_start(trained_workdir, capsys):
    flags = (f"--workdir={trained_workdir}", "--checkpoint=best", "--config=tests/small_run.py")
    assert small_run.run_main("train", *flags, reports_errors=True) != 0
    assert "training resumes from the last checkpoint or a step" in capsys.readouterr().err


def assert_same_model(actual: Path, expected: Path) -> None:
    models = [read_model(workdir) for workdir in (actual, expected)]
    assert len({model.weights.step for model in models}) == 1
    assert len({fingerprint(model.weights.variables) for model in models}) == 1
    best = read_weights(actual)
    assert best.step == models[0].weights.step
    assert fingerprint(unflatten_arrays(flatten_arrays(best.variables))) == fingerprint(models[0].weights.variables)


@pytest.fixture(scope="module")
def evaluated_workdir(small_images, compile_cache, tmp_path_factory) -> Path:
    """The workdir of a run with evaluations at steps 4, 8, 12 and 16; the first is the best."""
    workdir = tmp_path_factory.mktemp("runs") / "evaluated"
    train_and_evaluate(make_evaluated_spec(small_images), workdir)
    return workdir


def make_evaluated_spec(images: Path, steps: int = 16) -> RunSpec:
    config = small_run.get_config()
    config.data.root = str(images)
    config.optimizer.learning_rate = 0.0  # all scores are equal
    config.model.encoder.norm_momentum = 1.0
    config.train.update({"steps": steps, "eval_every": 4, "checkpoint_every": 4, "best_metric": "token_accuracy"})
    return RunSpec.from_config(config)


@pytest.mark.slow
def test_a_run_whose_best_weights_are_lost_goes_on_with_the_current_ones(
    evaluated_workdir, small_images, tmp_path, caplog
):
    workdir = Path(shutil.copytree(evaluated_workdir, tmp_path / "run"))
    assert read_model(workdir).weights.step == 4
    damage_arrays(workdir / "checkpoints" / "best" / "4")
    flip_bit(workdir / "model-4" / "model.safetensors")
    train_and_evaluate(make_evaluated_spec(small_images, steps=18), workdir)
    assert "the best weights, of step 4, are damaged, and no others were saved" in caplog.text
    assert "best-4" in caplog.text
    assert read_model(workdir).weights.step == 18  # evaluated at the last step


@pytest.mark.slow
def test_a_run_whose_best_weights_are_lost_goes_on_with_earlier_ones(evaluated_workdir, small_images, tmp_path, caplog):
    import jax

    from caption_jax.runs.checkpoints import Checkpoints

    workdir = Path(shutil.copytree(evaluated_workdir, tmp_path / "run"))
    weights = jax.tree.map(jax.numpy.asarray, read_weights(workdir).variables)
    shutil.rmtree(workdir / "checkpoints" / "best")
    checkpoints = Checkpoints(workdir)
    checkpoints.save_best(2, weights, {"token_accuracy": 0.125})
    checkpoints.close()
    flip_bit(workdir / "model-4" / "model.safetensors")
    train_and_evaluate(make_evaluated_spec(small_images), workdir)
    assert "the best model is now that of step 2, with a validation token_accuracy of 0.1250" in caplog.text
    assert read_model(workdir).weights.step == 2


@pytest.mark.long
def test_a_killed_run_with_a_damaged_checkpoint_ends_like_an_undisturbed_run(launcher, tmp_path):
    """With evaluations, averaged weights, accumulated gradients and two training phases."""
    expected, workdir = tmp_path / "expected", tmp_path / "run"
    launcher.complete(expected)
    launcher.stop_when(workdir, lambda folder: list_saved_steps(folder)[-1:] >= [45], signal.SIGKILL)
    newest = list_saved_steps(workdir)[-1]
    damage_arrays(workdir / "checkpoints" / "last" / str(newest))
    log = launcher.complete(workdir)
    assert f"the checkpoint of step {newest} is damaged" in log and "resuming from step" in log
    assert [row for row in read_rows(workdir)] == read_rows(expected)
    assert_same_result(workdir, expected)
