"""One update as a pure function of state and batch; the loop does all input and output.

`TrainStep.__call__` reads from first to last: gradient of the total loss, optimizer, moving average, metrics. The
forward pass that is differentiated is `TrainStep.objective_outputs`: augment and normalise, encode, decode, objectives.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.sharding import Mesh

from caption_jax.augment import augment
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass, target_weights
from caption_jax.objectives.objective import Objective, ObjectiveOutput
from caption_jax.objectives.total_objective import Denominators, check_batch, counts, mean_metrics, total_loss
from caption_jax.specs import RunSpec
from caption_jax.training.optimizer import ema_update
from caption_jax.training.state import TrainState
from input_pipeline.images import Preprocessing

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Parameters = dict[str, jax.Array]  # by path, such as "decoder/embedding"


class Microbatch(NamedTuple):
    """A slice of the batch that is processed in one forward and backward pass.

    Attributes:
        batch: its rows; row r is row r * grad_accum_steps + index of the whole batch.
        index: number of the microbatch.
        key: the step's PRNG key.
    """

    batch: Batch
    index: int | jax.Array
    key: jax.Array

    @property
    def augmentation_key(self) -> jax.Array:
        """The same for all microbatches: augmentation does not depend on how a batch is split."""
        return jax.random.fold_in(self.key, 0)

    @property
    def dropout_key(self) -> jax.Array:
        """A key for this microbatch only."""
        return jax.random.fold_in(self.key, self.index + 1)


class NonDifferentiated(NamedTuple):
    """Inputs of the forward pass held constant during differentiation.

    Attributes:
        frozen: parameters that are not trained at this step, by path.
        constants: arrays that objectives precomputed from the training split, by label.
    """

    frozen: Parameters
    constants: Mapping[str, PyTree]


class GradientResult(NamedTuple):
    """Gradients by parameter path, with the batch-norm statistics and objectives' outputs of the same forward pass."""

    gradients: Parameters
    batch_stats: PyTree
    outputs: dict[str, ObjectiveOutput]


@dataclass(frozen=True, eq=False)
class TrainStep:
    """`(state, batch, constants) -> (state, metrics)`, ready for `jax.jit`.

    The batch is split into `config.optimizer.accumulation` microbatches. Their gradients are summed, each term divided
    by its count in the whole batch, so the update is that of the whole batch (but for dropout masks, and batch norms
    that train: they see a microbatch). Only trainable parameters are differentiated, so nothing is computed backwards
    below the lowest of them.

    All randomness of a step comes from (seed, step); augmentation is the same however the batch is split.

    A batch holds "image", pixels, or "features": the output of the encoder's stage `config.data.feature_cache.stage`.
    `ForwardPass` and the objectives read its other fields.

    Attributes:
        model: its batch norms with frozen parameters run on stored statistics.
        optimizer: a transformation of gradients for all parameters.
        preprocessing: from uint8 pixels to the encoder's input.
        spec: the run's config; what depends on the number of images is not read here.
        frozen: paths of the parameters that are not trained.
        objectives: terms of the loss, by label.
        text_ids: from the decoder's token ids to the text encoder's; None for a model without text encoder.
        mesh: devices that the batch is spread over, which the contrastive objective gathers from; None for one.
    """

    model: ImageCaptioningModel
    optimizer: optax.GradientTransformation
    preprocessing: Preprocessing
    spec: RunSpec
    frozen: frozenset[str]
    objectives: Mapping[str, Objective]
    text_ids: Callable[[jax.Array], jax.Array] | None = None
    mesh: Mesh | None = field(default=None, repr=False)

    def __call__(
        self, state: TrainState, batch: Batch, constants: Mapping[str, PyTree] | None = None
    ) -> tuple[TrainState, Metrics]:
        """One update.

        Args:
            state: the state before it.
            batch: the global batch; see `input_pipeline.batches` for its fields.
            constants: arrays that objectives precomputed from the training split, by label.

        Raises:
            ConfigError: the batch lacks a field that an objective reads.
        """
        check_batch(self.objectives, batch)
        step_key = jax.random.fold_in(jax.random.key(self.spec.seed), state.step)
        trainable, frozen = split_params(state.params, self.frozen)
        result = self._gradient(
            trainable, NonDifferentiated(frozen, constants or {}), state.batch_stats, batch, step_key
        )
        params, opt_state = self._optimize(state, result.gradients, frozen)
        ema = None if state.ema is None else ema_update(state.ema, params, self.spec.optimizer.ema, state.step)
        metrics = {
            **mean_metrics(result.outputs),
            "gradient_norm": optax.tree.norm(result.gradients),
            "parameter_norm": optax.tree.norm(params),
            "tokens": target_weights(batch).sum(),
        }
        new_state = state.replace(
            step=state.step + 1, params=params, batch_stats=result.batch_stats, opt_state=opt_state, ema=ema
        )
        return new_state, metrics

    def objective_outputs(
        self, trainable: Parameters, constant: NonDifferentiated, batch_stats: PyTree, microbatch: Microbatch
    ) -> tuple[dict[str, ObjectiveOutput], PyTree]:
        """The forward pass: the objectives' outputs for a microbatch, by label, and the new batch-norm statistics."""
        images, start_after = self._encoder_input(microbatch)
        params = traverse_util.unflatten_dict({**constant.frozen, **trainable}, sep="/")

        # `apply` binds the model to its variables and calls this with it: objectives may call any of its methods.
        def all_objectives(model: ImageCaptioningModel) -> dict[str, ObjectiveOutput]:
            forward = ForwardPass(
                model,
                images,
                microbatch.batch,
                start_after=start_after,
                text_ids=self.text_ids,
                mesh=self.mesh,
            )
            return {
                label: objective(
                    model,
                    forward,
                    microbatch.batch,
                    constant.constants.get(label, {}),
                    jax.random.fold_in(microbatch.dropout_key, zlib.crc32(label.encode())),
                )
                for label, objective in self.objectives.items()
            }

        outputs, updated = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            rngs={"dropout": microbatch.dropout_key},
            mutable=["batch_stats"],
            method=all_objectives,
        )
        return outputs, updated["batch_stats"]

    def _encoder_input(self, microbatch: Microbatch) -> tuple[jax.Array, str]:
        """Normalised pixels or stored features, and the encoder's stage that they are the output of ("" for pixels)."""
        batch = microbatch.batch
        if "features" in batch:  # of views that were augmented when they were stored
            return batch["features"], self.spec.data.feature_cache.stage
        # The numbers of these rows in the whole batch, as `_split_rows` took them.
        rows = jnp.arange(batch["image"].shape[0]) * self.spec.optimizer.accumulation + microbatch.index
        images = augment(microbatch.augmentation_key, batch["image"], self.spec.augment, rows, self.model.ops)
        return self.preprocessing.normalise(images), ""

    def _gradient(
        self, trainable: Parameters, constant: NonDifferentiated, batch_stats: PyTree, batch: Batch, step_key: jax.Array
    ) -> GradientResult:
        """The gradient of the total loss over the whole batch, microbatch by microbatch."""
        grad_accum_steps = self.spec.optimizer.accumulation
        if grad_accum_steps == 1:
            return self._microbatch_gradient(trainable, constant, batch_stats, Microbatch(batch, 0, step_key))
        rows = jax.tree.map(lambda array: _split_rows(array, grad_accum_steps), batch)
        items = (jnp.arange(grad_accum_steps), rows)

        def microbatch_counts(item: tuple[jax.Array, Batch]) -> Denominators:
            index, rows = item
            outputs, _ = self.objective_outputs(trainable, constant, batch_stats, Microbatch(rows, index, step_key))
            return counts(outputs)

        # Each microbatch's terms are divided by counts over the whole batch, so those come first. XLA removes the
        # model's forward pass from this, as nothing but counts is read: what is left are sums of masks.
        denominators = jax.tree.map(jnp.sum, jax.lax.map(microbatch_counts, items))

        def add_microbatch(
            sums: tuple[Parameters, PyTree], item: tuple[jax.Array, Batch]
        ) -> tuple[tuple[Parameters, PyTree], dict[str, ObjectiveOutput]]:
            gradients, batch_stats = sums
            index, rows = item
            new = self._microbatch_gradient(
                trainable, constant, batch_stats, Microbatch(rows, index, step_key), denominators
            )
            return (jax.tree.map(jnp.add, gradients, new.gradients), new.batch_stats), new.outputs

        start = (jax.tree.map(jnp.zeros_like, trainable), batch_stats)
        (gradients, batch_stats), outputs = jax.lax.scan(add_microbatch, start, items)
        return GradientResult(gradients, batch_stats, jax.tree.map(lambda each: each.sum(0), outputs))

    def _microbatch_gradient(
        self,
        trainable: Parameters,
        constant: NonDifferentiated,
        batch_stats: PyTree,
        microbatch: Microbatch,
        denominators: Denominators | None = None,
    ) -> GradientResult:
        """A microbatch's contribution to the gradient.

        `denominators` are the counts of the whole batch, or None where these rows are the whole batch. The value of the
        total loss is not kept: the metrics report each of its terms.
        """

        def loss(trainable: Parameters) -> tuple[jax.Array, tuple[PyTree, dict[str, ObjectiveOutput]]]:
            outputs, updated = self.objective_outputs(trainable, constant, batch_stats, microbatch)
            divided_by = counts(outputs) if denominators is None else denominators
            return total_loss(self.objectives, outputs, divided_by), (updated, outputs)

        gradients, (updated, outputs) = jax.grad(loss, has_aux=True)(trainable)
        return GradientResult(gradients, updated, outputs)

    def _optimize(self, state: TrainState, gradients: Parameters, frozen: Parameters) -> tuple[PyTree, optax.OptState]:
        """New parameters, and the optimizer's new state.

        One optimizer, with one layout of its state, serves all stages of unfreezing: it takes a gradient for every
        parameter, and moves none that is frozen.
        """
        zeros = {path: jnp.zeros_like(value) for path, value in frozen.items()}
        full = traverse_util.unflatten_dict({**gradients, **zeros}, sep="/")
        updates, opt_state = self.optimizer.update(full, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state


def split_params(params: PyTree, frozen: frozenset[str]) -> tuple[Parameters, Parameters]:
    """Parameters by path: those that are trained, and those at the paths `frozen`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    trainable = {path: value for path, value in flat.items() if path not in frozen}
    return trainable, {path: value for path, value in flat.items() if path in frozen}


def _split_rows(array: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...], each device keeping its own rows."""
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
