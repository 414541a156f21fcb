"""The training loop: all reading, writing and deciding around the pure steps of `step.py`."""

from __future__ import annotations

import collections
import contextlib
import json
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from caption_jax.checkpoints import Checkpoints, read_weights
from caption_jax.evaluation import write_results
from caption_jax.training.clock import Clock
from caption_jax.training.evaluate import Evaluation, Evaluator, as_results
from caption_jax.training.experiment import Experiment, initial_variables, start_experiment
from caption_jax.training.monitoring import Monitor
from caption_jax.training.optimizer import frozen_norms, make_optimizer, phases
from caption_jax.training.sharding import batch_sharding, parameter_shardings, put_batch, replicated, shardings_like
from caption_jax.training.showing import show_samples
from caption_jax.training.state import TrainState, create_state
from caption_jax.training.step import make_train_step
from input_pipeline.batches import train_batches
from input_pipeline.prefetch import Prefetched, prefetch_to_device

PyTree = Any


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


def train_and_evaluate(config: ConfigDict, workdir: str | epath.Path) -> Evaluation | None:
    """Trains from `config`, or goes on with the run that `workdir` holds, and scores the best weights.

    Returns:
        The final evaluation of the validation split; None when the data has none, or when a signal ended the run early.

    Raises:
        ValueError: config, data and workdir do not fit each other; the message names the key or file.
        NonFiniteLossError: the loss is no number any more. The last good checkpoint is safe.
    """
    workdir = epath.Path(workdir).resolve()
    experiment = start_experiment(config, workdir)
    run = Run(experiment)
    with contextlib.closing(run), _stop_on_signal() as asked_to_stop:
        finished = run.train(asked_to_stop)
    return finish(experiment) if finished else None


class Run:
    """One process's part in a training run. `train` is the loop; the rest are the things it does now and then."""

    def __init__(self, experiment: Experiment):
        config = experiment.config
        self.experiment, self.config = experiment, config
        self.steps, self.eval_every, self.checkpoint_every = _intervals(config, len(experiment.split("train")))
        self.checkpoints = Checkpoints(experiment.workdir)
        self.optimizer, self.state, self.schedule, self.shardings = _initial_state(experiment, self.steps)
        self.batches = _open_batches(experiment)
        self.clock = Clock(self.steps, config.data.batch_size, jax.device_count())
        self.progress: dict[str, Any] = {"best": None, "best_step": 0, "evaluations_without_gain": 0, "stopped": False}
        self._restore()
        self.evaluator = Evaluator(experiment, "val", config.train.eval_images) if "val" in experiment.splits else None
        self.monitor = Monitor(
            experiment.workdir,
            config,
            is_main_process=jax.process_index() == 0,
            total_steps=self.steps,
            start_step=self.step,
        )

    @property
    def step(self) -> int:
        """Number of updates made."""
        return int(self.state.step)

    def train(self, asked_to_stop: Callable[[int], bool]) -> bool:
        """Runs to the last step, to early stopping, or until asked to stop; says whether the run is complete."""
        step, pending = self.step, _Pending()
        with self.batches:
            self.clock.start(step)
            for end, update in self._phases(step):
                while step < end and not self.progress["stopped"]:
                    self._profile(step)
                    with self.clock.waiting():
                        batch = next(self.batches)
                    self.state, metrics = update(self.state, batch)
                    step += 1
                    self._check(pending.push(step, metrics, batch["index"]))
                    if step % self.config.train.log_every == 0 or step == self.steps:
                        self._log(step, metrics)
                    if step % self.eval_every == 0 or step == self.steps:
                        self._evaluate(step)
                    stop = asked_to_stop(step)
                    if step % self.checkpoint_every == 0 or step == self.steps or stop or self.progress["stopped"]:
                        self._check(pending.flush())
                        self._save(step)
                    if stop:
                        logging.warning("asked to stop: step %d is saved; the same command goes on from there", step)
                        return False
        return True

    def close(self) -> None:
        """Lets writes in the background finish."""
        self.checkpoints.close()
        self.monitor.close()

    def _phases(self, step: int) -> Iterator[tuple[int, Callable]]:
        """(last step, jitted update) of each stretch in which the same parameters are frozen."""
        starts = phases(self.state.params, self.config.optimizer.rules)
        ends = [start for start, _ in starts[1:]] + [self.steps]
        mesh = self.experiment.mesh
        for (start, frozen), end in zip(starts, ends, strict=True):
            end = min(end, self.steps)
            if step < end and start < end:
                model = self.experiment.model(frozen_norms(frozen))
                logging.info("from step %d: %d parameters (arrays) frozen", max(start, step), len(frozen))
                update = make_train_step(
                    model, self.optimizer, self.experiment.described.preprocessing, self.config, frozen
                )
                shardings = (self.shardings, batch_sharding(mesh))
                yield (
                    end,
                    jax.jit(
                        update,
                        donate_argnums=0,
                        in_shardings=shardings,
                        out_shardings=(self.shardings, replicated(mesh)),
                    ),
                )

    def _restore(self) -> None:
        templates = (self.state.weights(), self.state.remainder())
        restored = self.checkpoints.restore(*jax.tree.map(_template, templates))
        if restored is None:
            return
        self.state = self.state.replace_from(restored.weights, restored.train)
        self.batches.set_state(restored.records["iterator"])
        self.clock.load(restored.records["clock"])
        self.progress = restored.records["progress"]
        logging.info("going on from step %d of %d in %s", restored.step, self.steps, self.experiment.workdir)

    def _save(self, step: int) -> None:
        with self.clock.paused():
            records = {
                "iterator": self.batches.get_state(),
                "clock": self.clock.dump(),
                "progress": self.progress,
            }
            self.checkpoints.save(step, self.state.weights(), self.state.remainder(), records)

    def _check(self, settled: list[tuple[int, float, Any]]) -> None:
        """Stops the run at the first loss that is no number, naming the images of that step."""
        for step, loss, index in settled:
            if not math.isfinite(loss):
                self.checkpoints.wait()
                ids = [self.experiment.split("train").image_ids[int(i)] for i in _local(index)]
                raise NonFiniteLossError(
                    f"the loss of step {step} is {loss}; the checkpoints in {self.experiment.workdir} are from before. "
                    f"Images of the step: {ids}. Try a lower config.optimizer.learning_rate, a longer warm-up, or "
                    "config.dtype=float32."
                )

    def _log(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        values["learning_rate"] = float(self.schedule(step - 1))
        values |= self.clock.tick(step)
        values["unreadable_images"] = len(self.batches.problems)
        self.monitor.scalars(step, values, "train")
        self.monitor.progress(step, values["loss"], self.clock)

    def _evaluate(self, step: int) -> None:
        """Scores the validation split, keeps the best weights, and counts towards early stopping."""
        if self.evaluator is None:
            return
        with self.clock.paused():
            weights = self.state.weights()
            found = self.evaluator(weights, step)
            self.monitor.scalars(step, found.metrics, "val")
            show_samples(self.monitor, self.experiment, self.evaluator.split, weights, step)
            value, best = found.metrics["CIDEr-D"], self.progress["best"]
            logging.info("step %d: validation CIDEr-D %.4f, BLEU-4 %.4f", step, value, found.metrics["BLEU-4"])
            if best is None or value > best:
                self.progress |= {"best": value, "best_step": step, "evaluations_without_gain": 0}
                self.checkpoints.save_best(step, weights, found.metrics)
            else:
                self.progress["evaluations_without_gain"] += 1
            patience = self.config.train.patience
            if patience and self.progress["evaluations_without_gain"] >= patience:
                logging.info("no better CIDEr-D in %d evaluations: stopping", patience)
                self.progress["stopped"] = True

    def _profile(self, step: int) -> None:
        profile = self.config.train.profile
        if profile.steps and step == profile.start:
            jax.profiler.start_trace(str(self.experiment.workdir / "profile"))
        if profile.steps and step == profile.start + profile.steps:
            jax.block_until_ready(self.state.step)
            jax.profiler.stop_trace()


def finish(experiment: Experiment) -> Evaluation | None:
    """Scores the best weights on the validation split and writes the results and the loss curve to the workdir."""
    from caption_jax.training.pictures import loss_curve  # matplotlib takes a second to import

    if jax.process_index() == 0:
        loss_curve(experiment.workdir / "metrics.jsonl", experiment.workdir / "loss_curve.png")
    return evaluate_split(experiment, "val") if "val" in experiment.splits else None


def evaluate_split(experiment: Experiment, split: str, images: str = "real") -> Evaluation:
    """Scores a run's best weights on a split; writes eval_<split>.json and captions_<split>.json."""
    weights = read_weights(experiment.workdir, "best", replicated(experiment.mesh))
    found = Evaluator(experiment, split, images=images)(weights.variables, weights.step)
    if jax.process_index() == 0:
        suffix = split if images == "real" else f"{split}_{images}"
        (experiment.workdir / f"eval_{suffix}.json").write_text(json.dumps(as_results(found), indent=2) + "\n")
        write_results(experiment.workdir / f"captions_{suffix}.json", found.captions)
    return found


class _Pending:
    """Losses of the newest steps, looked at one step late so that the device never waits for the host."""

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[int, jax.Array, jax.Array]] = collections.deque()

    def push(self, step: int, metrics: dict[str, jax.Array], index: jax.Array) -> list[tuple[int, float, Any]]:
        self._queue.append((step, metrics["loss"], index))
        return [self._pop()] if len(self._queue) > 1 else []

    def flush(self) -> list[tuple[int, float, Any]]:
        return [self._pop() for _ in range(len(self._queue))]

    def _pop(self) -> tuple[int, float, Any]:
        step, loss, index = self._queue.popleft()
        return step, float(loss), index


def _initial_state(experiment: Experiment, steps: int) -> tuple[Any, TrainState, Callable, PyTree]:
    variables = initial_variables(experiment)
    optimizer, schedule = make_optimizer(experiment.config.optimizer, variables["params"], steps)
    state = create_state(variables, optimizer, averaged=experiment.config.optimizer.ema > 0)
    mesh = experiment.mesh
    owners = parameter_shardings(state.params, experiment.config.mesh.rules, mesh)
    shardings = shardings_like(state, state.params, owners, mesh)
    return optimizer, jax.device_put(state, shardings), schedule, shardings


def _open_batches(experiment: Experiment) -> Prefetched:
    """The training batches, made ahead and put on the devices by a thread."""
    config, described = experiment.config, experiment.described
    batches = train_batches(
        experiment.split("train"),
        described.preprocessing,
        described.vocabulary,
        config.data,
        config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    return prefetch_to_device(batches, lambda batch: put_batch(batch, experiment.mesh), config.data.prefetch)


def _intervals(config: ConfigDict, images: int) -> tuple[int, int, int]:
    """Numbers of steps: of the run, between evaluations, between checkpoints."""
    epoch = max(images // config.data.batch_size, 1)
    steps = config.train.steps or max(round(config.train.epochs * images / config.data.batch_size), 1)
    return steps, config.train.eval_every or epoch, config.train.checkpoint_every or epoch


def _template(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _local(array: jax.Array) -> list[int]:
    """The rows of a batch-sharded array that this process holds."""
    return [int(value) for shard in array.addressable_shards for value in jnp.ravel(shard.data)]


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[int], bool]]:
    """Within it, SIGTERM (a preemption, a scheduler's end) asks the loop to save and stop, everywhere at one step."""
    received = []
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    several = jax.process_count() > 1
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
