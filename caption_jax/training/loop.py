"""The training loop, which contains all I/O and control flow around the pure training step in `step.py`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from caption_jax.errors import WorkdirError
from caption_jax.evaluation.final_evaluation import evaluate_weights
from caption_jax.evaluation.sample_summaries import SampleSummaries
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.objectives.constants import check_same_constants
from caption_jax.parameters.sharding import replicated
from caption_jax.runs.agreement import check_same_flags
from caption_jax.runs.artifact_writer import ArtifactWriter
from caption_jax.runs.best_recovery import resume_best
from caption_jax.runs.checkpoints import Checkpoints, RestoredState
from caption_jax.runs.disk_use import DiskUse
from caption_jax.runs.experiment import Experiment, start_experiment
from caption_jax.runs.initial_variables import initial_variables
from caption_jax.runs.late_evaluation import EVALUATION_DUE
from caption_jax.runs.lock import lock_workdir
from caption_jax.runs.sessions import EARLY_STOPPING, LAST_STEP, STOP_REQUESTED, SessionRecord, record_session
from caption_jax.runs.weights import Weights
from caption_jax.runtime.memory import return_freed_memory
from caption_jax.runtime.stopping import EvaluationStoppedError, StopRequested, stop_on_signal
from caption_jax.runtime.watchdog import Watchdog
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.telemetry.clock import Clock
from caption_jax.telemetry.input_wait import InputWaitWarning
from caption_jax.telemetry.monitoring import Monitor
from caption_jax.telemetry.progress import SILENT, Display, Phase, describe_rates
from caption_jax.telemetry.tracing import Trace
from caption_jax.training.caption_trends import describe_captions, warn_about_rewards
from caption_jax.training.next_phase import NextPhaseCompiler, training_phases
from caption_jax.training.pending_steps import PendingSteps
from caption_jax.training.run_parts import make_program_with_constants, make_validation_evaluator, open_batches
from caption_jax.training.start_options import StartOptions
from caption_jax.training.state import TrainState
from caption_jax.training.step_faults import StepFaults
from input_pipeline.disk_faults import OptionalOutput
from input_pipeline.extras import TRAINING, require
from input_pipeline.files import absolute_path

# Why a run stops before its end.
SIGNAL = "stop requested"
MAX_STEPS = "--max_steps_this_run"

_DEFAULT_OPTIONS = StartOptions()


class TrainingResult(NamedTuple):
    """The result of training in one process.

    Attributes:
        is_complete: whether the run has reached its end; otherwise, the same command resumes it.
        evaluation: the evaluation of the best weights on the validation split; None if the run is not complete or has
            no such split.
    """

    is_complete: bool
    evaluation: ScoredEvaluation | None


def train_and_evaluate(
    spec: RunSpec, workdir: str | epath.Path, display: Display = SILENT, options: StartOptions = _DEFAULT_OPTIONS
) -> ScoredEvaluation | None:
    """Trains the model of `spec`, or resumes the run in `workdir`, and evaluates the best weights; see `train_run`.

    Returns:
        The final evaluation of the validation split; None if there is no such split or the run stopped early.
    """
    return train_run(spec, workdir, display, options).evaluation


def train_run(
    spec: RunSpec, workdir: str | epath.Path, display: Display = SILENT, options: StartOptions = _DEFAULT_OPTIONS
) -> TrainingResult:
    """Trains the model of `spec`, or resumes the run in `workdir`, and evaluates the best weights.

    Args:
        spec: the config of the run.
        workdir: folder or bucket of the run.
        display: shows the progress.
        options: how to start or resume the run.

    Raises:
        ValueError: config, data and workdir are inconsistent. The message contains the key or file.
        MissingPackageError: the `train` extra is not installed.
        NonFiniteLossError: the loss, a gradient or a parameter is NaN or infinite. The last checkpoint is retained.
        SignalReceived: a signal ended the run before its first step or after its last one.
    """
    require("training", *TRAINING)
    with lock_workdir(absolute_path(workdir)) as lock, DiskUse(lock.workdir).reported_faults() as disk_use:
        experiment = start_experiment(spec, lock.workdir, display, allow_data_change=options.allow_data_change)
        check_same_flags(options.as_flags())
        run = Run(experiment, options.checkpoint, disk_use)
        with contextlib.closing(run), stop_on_signal() as stop_requested:
            is_complete = run.train(lock.checked(stop_requested), options.max_steps)
        return TrainingResult(is_complete, finish_run(run) if is_complete else None)


class Run:
    """A training run in one process. `train` is the loop, and private methods perform its periodic tasks.

    Attributes:
        experiment: the parts of the run that do not change during training.
        spec: the run's spec, with data-dependent values resolved, such as the number of steps.
        program: the jitted computations.
        state: the current train state.
        batches: an infinite iterator over batches on the devices.
        is_evaluation_due: whether the evaluation of the current step is not finished.
    """

    def __init__(self, experiment: Experiment, checkpoint: int | None = None, disk_use: DiskUse | None = None):
        self.experiment, self.spec = experiment, experiment.spec
        self.disk_use = disk_use or DiskUse(experiment.workdir)
        self.steps = self.spec.train.steps
        self.checkpoints = Checkpoints(experiment.workdir, checkpoint)
        is_saved, kept_models = self.checkpoints.is_saved, experiment.spec.train.kept_models
        self.artifacts = ArtifactWriter(experiment.workdir, experiment.description, is_saved, kept_models)
        self.clock = Clock(self.steps, self.spec.data.batch_size, experiment.mesh.size)
        self.input_wait = InputWaitWarning(self.spec.data)
        self.progress: dict[str, Any] = {"best": None, "best_step": 0, "evaluations_without_gain": 0}
        self.display = experiment.display
        self.compiler = NextPhaseCompiler()
        with self.display.phase("building the model"):
            self.evaluator = make_validation_evaluator(experiment)  # validates the config before any slow operation
            self.program, self.constant_fingerprints = make_program_with_constants(experiment, self.steps)
            self.state, restored = self._create_or_restore_state()
            self.samples = None
            if self.evaluator is not None:
                self.samples = SampleSummaries(experiment, self.evaluator.split, self.evaluator.context)
        self.batches = open_batches(experiment, self.state)
        self.is_evaluation_due = False
        train = self.spec.train
        self.faults = StepFaults(train, experiment.split("train"), lambda: self.checkpoints.latest_step)
        self.watchdog = Watchdog(train.watchdog, train.watchdog_factor, train.watchdog_seconds)
        if restored is not None:
            self._resume(restored)
        self.monitor = Monitor(
            experiment.workdir,
            as_mapping(self.spec),
            is_main_process=jax.process_index() == 0,
            start_step=int(self.state.step),
            repeats_evaluation=self.is_evaluation_due,
        )

    def train(self, stop_requested: StopRequested, max_steps: int = 0) -> bool:
        """Trains until the last step, early stopping, a stop request or a number of steps.

        Args:
            stop_requested: see `stop_on_signal`.
            max_steps: number of steps after which to stop; 0 for no limit.

        Returns:
            Whether training is complete.
        """
        step = first_step = int(self.state.step)  # number of updates made so far
        trace = Trace(self.experiment.workdir / "profile", self.spec.train.profile)
        self.clock.start(step)
        bar = self.display.phase("training", self.steps, "steps", completed=step)
        session_record = self._recorded_session(step)
        with (
            self.batches,
            contextlib.closing(trace),
            session_record as session,
            bar as phase,
            PendingSteps(self.faults, functools.partial(self._log, phase)) as pending,
            self.watchdog,
        ):
            if self.is_evaluation_due:  # the previous process stopped during it
                self._evaluate(step, stop_requested)
                if self.is_evaluation_due:
                    return _record_stop(session, step, SIGNAL)
            for end, train_step in self._phases(step):
                while step < end and not self._is_out_of_patience():
                    self.checkpoints.check()
                    self.artifacts.check()
                    trace.before_step(step, self.state)
                    with self.clock.waiting():
                        batch = next(self.batches)
                    self.state, metrics = train_step(self.state, batch, self.program.constants)
                    step += 1
                    phase.advance()
                    pending.push(step, metrics, batch["index"], self._logged_values(step))
                    self.watchdog.step()
                    improved = False
                    if self._is_due(step, self.spec.train.eval_every):
                        pending.flush()
                        improved = self._evaluate(step, stop_requested)
                    reason = self._find_reason_to_stop(step, stop_requested, first_step + max_steps)
                    if (
                        improved
                        or reason
                        or self._is_due(step, self.spec.train.checkpoint_every)
                        or self._is_out_of_patience()
                    ):
                        pending.flush()
                        self._save(step)
                    if reason:
                        return _record_stop(session, step, reason)
            pending.flush()
            self._record_end(session, step)
        return True

    def close(self) -> None:
        """Waits for background writes to finish."""
        # The stack closes in reverse order, even after an error.
        with self.display.phase("finishing writes"), contextlib.ExitStack() as stack:
            stack.callback(self.compiler.close)  # the last to be closed, because a compilation can take minutes
            stack.callback(self.monitor.close)
            stack.callback(self.artifacts.close)
            stack.callback(self.checkpoints.close)

    def _create_or_restore_state(self) -> tuple[TrainState, RestoredState | None]:
        """Returns the state on the devices, and the latest checkpoint if the state was restored from it."""
        abstract = self.program.abstract_state
        restored = self.checkpoints.restore(abstract.weights(), abstract.resume_only())
        is_complete = restored is not None and restored.step >= self.steps
        arrays = abstract.weights(), abstract.resume_only()
        self.disk_use.check(*arrays, is_complete=is_complete, kept_models=self.spec.train.kept_models)
        if restored is not None:
            return abstract.from_checkpoint(restored.weights, restored.train), restored
        self.artifacts.delete_after(0)
        return self.program.start(initial_variables(self.experiment)), None

    def _resume(self, restored: RestoredState) -> None:
        """Restores the data iterator, the clock, early stopping and the artifacts from a checkpoint."""
        experiment = self.experiment
        try:
            position = restored.records["iterator"]
            if experiment.allows_data_change:  # the position in the sequence of the current data
                position = {**self.batches.get_state(), "images": position["images"]}
            else:
                constants = restored.records.get("constants", {})
                check_same_constants(constants, self.constant_fingerprints, experiment.workdir)
            self.batches.set_state(position)
            self.clock.load(restored.records["clock"])
            self.faults.load(restored.records.get("faults", {}))
            progress = {**self.progress, **restored.records["progress"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise WorkdirError(
                f"the records of the checkpoint of step {restored.step} in {self.experiment.workdir} are damaged "
                f"({error!r}): resume from an earlier one with --checkpoint=STEP"
            ) from error
        self.progress = resume_best(
            self.experiment,
            self.artifacts,
            progress,
            restored.step,
            lambda: Weights(self.state.weights(), restored.step),
            replicated(self.experiment.mesh),
        )
        self.is_evaluation_due = bool(restored.records.get(EVALUATION_DUE))
        logging.info("resuming from step %d of %d in %s", restored.step, self.steps, self.experiment.workdir)
        if restored.step >= self.steps and not self.is_evaluation_due:
            logging.warning(
                "this run is already complete: its number of steps was set to %d when it was started. To continue it, "
                "set --config.train.steps to more; to start a new run, use another --workdir",
                self.steps,
            )

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.steps

    def _is_out_of_patience(self) -> bool:
        patience = self.spec.train.patience
        return bool(patience) and self.progress["evaluations_without_gain"] >= patience

    def _phases(self, step: int) -> Iterator[tuple[int, Callable]]:
        return training_phases(self.program, self.state.params, step, self.compiler, self.display, self.watchdog)

    def _find_reason_to_stop(self, step: int, stop_requested: StopRequested, limit: int) -> str:
        """Returns why the run stops after `step` steps although it is not complete; "" if it does not."""
        if stop_requested(step) or self.is_evaluation_due:
            return SIGNAL
        is_complete = step == self.steps or self._is_out_of_patience()
        return MAX_STEPS if step == limit and not is_complete else ""

    def _recorded_session(self, step: int) -> contextlib.AbstractContextManager[SessionRecord]:
        return record_session(self.experiment.workdir, self.experiment.splits, step, self.steps)

    def _record_end(self, session: SessionRecord, step: int) -> None:
        """Records why training is complete after `step` steps."""
        if step < self.steps:
            train = self.spec.train
            detail = f"{train.best_metric} had not improved for {train.patience} evaluations"
            session.end(step, EARLY_STOPPING, detail)
        else:
            session.end(step, LAST_STEP)

    def _save(self, step: int) -> None:
        with self.clock.paused(), self.watchdog.paused():
            self.monitor.flush_metrics()  # a run that resumes from this checkpoint does not repeat earlier rows
            records = {
                "iterator": self.batches.get_state(),
                "clock": self.clock.dump(),
                "progress": self.progress,
                "constants": self.constant_fingerprints,
                "faults": self.faults.dump(),
                **({EVALUATION_DUE: True} if self.is_evaluation_due else {}),
            }
            weights = self.state.weights()
            self.checkpoints.save(step, weights, self.state.resume_only(), records)
            if self.progress["best"] is None:  # before the first evaluation, the latest model is used as the best
                self.artifacts.write(step, weights)

    def _logged_values(self, step: int) -> dict[str, Any] | None:
        """Returns the values to log after a step in addition to its metrics; None if the step is not a log point."""
        if not self._is_due(step, self.spec.train.log_every):
            return None
        return {"learning_rate": self.program.schedule(step - 1), "unreadable_images": len(self.batches.problems)}

    def _log(self, phase: Phase, step: int, values: dict[str, float]) -> None:
        """Writes the values of a finished log point, and shows a summary in `phase`."""
        unreadable_images = values.pop("unreadable_images")
        values |= {**self.clock.tick(step), **self.faults.summarise(values)}
        self.input_wait.update(self.clock.rates)
        # "loss" is the captioning loss, not the total. A background thread writes the row.
        self.monitor.scalars(step, {**values, "unreadable_images": unreadable_images}, "train")
        phase.text = describe_rates(values["loss"], self.clock)

    def _evaluate(self, step: int, stop_requested: StopRequested) -> bool:
        """Evaluates the validation split, updates early stopping and saves the weights if they are the best so far.

        If a stop is requested meanwhile, the evaluation is abandoned, and `is_evaluation_due` remains set.

        Returns:
            Whether the weights are the best so far.
        """
        if self.evaluator is None:
            return False
        self.is_evaluation_due = True
        with self.clock.paused(), self.watchdog.paused():
            weights = self.state.weights()
            try:
                result = self.evaluator(weights, step, lambda: stop_requested(step))
            except EvaluationStoppedError:
                return False
            captions = describe_captions(result.captions, self.spec.metrics.tokenizer)
            self.monitor.scalars(step, {**result.metrics, **captions}, "val")
            with self.display.phase("captioning samples"):
                self.samples.write(self.monitor, weights, step)
            name = self.spec.train.best_metric
            value, best = result.metrics[name], self.progress["best"]
            scores = ", ".join(f"{key} {result.metrics[key]:.4f}" for key in dict.fromkeys((name, "CIDEr-D", "BLEU-4")))
            logging.info("step %d of %d: validation %s", step, self.steps, scores)
            is_best = best is None or value > best
            if is_best:
                self.progress = {"best": value, "best_step": step, "evaluations_without_gain": 0}
            elif step > self.spec.optimizer.warmup_steps:  # until then, scores may be constant
                self.progress["evaluations_without_gain"] += 1
            self.is_evaluation_due = False
            self.monitor.flush_metrics()
            if jax.process_index() == 0:
                warn_about_rewards(self.experiment.workdir / "metrics.jsonl")
            self.checkpoints.add_evaluation(step, self.progress, result.metrics if is_best else None)
            if is_best:
                self.checkpoints.save_best(step, weights, result.metrics)
                self.artifacts.write(step, weights)
            elif self._is_out_of_patience():
                logging.info("early stopping: %s has not improved for %d evaluations", name, self.spec.train.patience)
            return_freed_memory()
            return is_best


def _record_stop(session: SessionRecord, step: int, reason: str) -> bool:
    """Records that the run stopped after `step` steps, which are saved. Returns that training is not complete."""
    logging.warning("%s: saved step %d; run the same command again to resume", reason, step)
    session.end(step, STOP_REQUESTED, "" if reason == SIGNAL else reason)
    return False


def finish_run(run: Run) -> ScoredEvaluation | None:
    """Evaluates the best weights on the validation split, and writes the results, the report and the loss curve."""
    from caption_jax.evaluation.report.plots import loss_curve  # imports matplotlib, which takes a second

    experiment = run.experiment
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("best model written")  # the main process writes it, all read it
    if jax.process_index() == 0:
        with run.display.phase("drawing the loss curve"), OptionalOutput("the loss curve is not drawn"):
            loss_curve(experiment.workdir / "metrics.jsonl", experiment.workdir / "loss_curve.png")
    if run.evaluator is None:
        return None
    return evaluate_weights(experiment, run.evaluator.on_full_split(), "val", java=False, requires_images=False)
