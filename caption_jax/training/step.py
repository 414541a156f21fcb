"""The training step, a pure function of state and batch. All I/O is in the training loop.

`TrainStep.__call__` computes the gradient of the total loss, the optimizer update, the moving average and the metrics.
`TrainStep.objective_outputs` is the differentiated forward pass, which consists of augmentation, normalisation,
encoder, decoder and objectives.
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
from caption_jax.objectives.total_objective import Denominators, check_batch, get_counts, mean_metrics, total_loss
from caption_jax.specs import RunSpec
from caption_jax.training.gradient_reduction import cast_kernels
from caption_jax.training.optimizer import ema_update
from caption_jax.training.skipped_steps import skip_if_not_finite
from caption_jax.training.state import TrainState
from input_pipeline.images import Preprocessing

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Parameters = dict[str, jax.Array]  # by path, such as "decoder/embedding"


class Microbatch(NamedTuple):
    """A slice of the batch that is processed in one forward and backward pass.

    Attributes:
        batch: arrays of the microbatch, of which row r is row r * grad_accum_steps + index of the whole batch.
        index: index of the microbatch.
        key: PRNG key of the step.
    """

    batch: Batch
    index: int | jax.Array
    key: jax.Array

    @property
    def augmentation_key(self) -> jax.Array:
        """Key that is the same for all microbatches, so that augmentation does not depend on how the batch is split."""
        return jax.random.fold_in(self.key, 0)

    @property
    def dropout_key(self) -> jax.Array:
        """Key unique to this microbatch."""
        return jax.random.fold_in(self.key, self.index + 1)


class FixedInputs(NamedTuple):
    """Inputs of the forward pass that are neither differentiated nor split into microbatches.

    Attributes:
        frozen: parameters that are not trained at this step, by path.
        constants: constants of the objectives, by label.
    """

    frozen: Parameters
    constants: Mapping[str, PyTree]


class GradientResult(NamedTuple):
    """Gradients by parameter path, and the batch-norm statistics and objective outputs of the same forward pass."""

    gradients: Parameters
    batch_stats: PyTree
    outputs: dict[str, ObjectiveOutput]


@dataclass(frozen=True, eq=False)
class TrainStep:
    """A training step `(state, batch, constants) -> (state, metrics)`, to be transformed by `jax.jit`.

    The batch is split into `config.optimizer.grad_accum_steps` microbatches, and their gradients are accumulated. Each
    loss is divided by its count over the whole batch. The update therefore does not depend on the number of
    microbatches, except for dropout masks and for trained batch norms, which compute statistics per microbatch. The
    gradient is computed with respect to trainable parameters only, so the backward pass stops at the lowest trainable
    layer.

    All randomness is derived from the seed and the step. Augmentation does not depend on how the batch is split.

    The batch contains either "image" (pixels) or "features" (the output of the encoder stage
    `config.data.feature_cache.stage`). Its other fields are read by `ForwardPass` and the objectives.

    Attributes:
        model: the captioning model, in which frozen batch norms use running statistics.
        optimizer: gradient transformation for all parameters.
        preprocessing: converts uint8 pixels to the encoder's input.
        spec: the run's spec. Values that depend on the number of images are not used.
        frozen: paths of the frozen parameters.
        objectives: objectives by label.
        text_ids: maps decoder token ids to text encoder token ids; None for models without a text encoder.
        mesh: mesh over which the batch is sharded, used by the contrastive objective; None for a single device.
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
        """Performs one update.

        Args:
            state: the state before the update.
            batch: the global batch; see `input_pipeline.batches` for its fields.
            constants: constants of the objectives, by label.

        Raises:
            ConfigError: the batch lacks a field that an objective reads.
        """
        check_batch(self.objectives, batch)
        step_key = jax.random.fold_in(jax.random.key(self.spec.seed), state.step)
        trainable, frozen = split_params(state.params, self.frozen)
        fixed = FixedInputs(frozen, constants or {})
        result = self._gradient(trainable, fixed, state.batch_stats, batch, step_key)
        with jax.named_scope("optimizer"):
            params, opt_state = self._apply_optimizer(state, result.gradients, frozen)
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
        if self.spec.train.non_finite == "skip":
            return skip_if_not_finite(state, new_state, metrics)
        return new_state, metrics

    def objective_outputs(
        self, trainable: Parameters, fixed: FixedInputs, batch_stats: PyTree, microbatch: Microbatch
    ) -> tuple[dict[str, ObjectiveOutput], PyTree]:
        """Runs the forward pass on a microbatch.

        Returns:
            The objective outputs by label, and the new batch-norm statistics.
        """
        images, start_after = self._encoder_input(microbatch)
        if self.spec.train.gradient_reduction == "bfloat16":
            trainable = cast_kernels(trainable, self.model.decoder.dtype)
        params = traverse_util.unflatten_dict({**fixed.frozen, **trainable}, sep="/")

        # `apply` passes the bound model to this function, so objectives can call any of its methods.
        def all_objectives(model: ImageCaptioningModel) -> dict[str, ObjectiveOutput]:
            forward = ForwardPass(
                model,
                images,
                microbatch.batch,
                start_after=start_after,
                text_ids=self.text_ids,
                mesh=self.mesh,
            )
            outputs = {}
            for label, objective in self.objectives.items():
                key = jax.random.fold_in(microbatch.dropout_key, zlib.crc32(label.encode()))
                with jax.named_scope("objectives"), jax.named_scope(label):
                    outputs[label] = objective(model, forward, microbatch.batch, fixed.constants.get(label, {}), key)
            return outputs

        outputs, updated = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            rngs={"dropout": microbatch.dropout_key},
            mutable=["batch_stats"],
            method=all_objectives,
        )
        return outputs, updated["batch_stats"]

    def _encoder_input(self, microbatch: Microbatch) -> tuple[jax.Array, str]:
        """Returns normalised pixels or cached features, and the encoder stage that produced them ("" for pixels)."""
        batch = microbatch.batch
        if "features" in batch:  # computed from augmented images
            return batch["features"], self.spec.data.feature_cache.stage
        # Indices of the microbatch's rows in the whole batch; see `_split_rows`.
        indices = jnp.arange(batch["image"].shape[0]) * self.spec.optimizer.grad_accum_steps + microbatch.index
        with jax.named_scope("augmentation"):
            images = augment(microbatch.augmentation_key, batch["image"], self.spec.augment, indices, self.model.ops)
            return self.preprocessing.normalise(images), ""

    def _gradient(
        self, trainable: Parameters, fixed: FixedInputs, batch_stats: PyTree, batch: Batch, step_key: jax.Array
    ) -> GradientResult:
        """Computes the gradient of the total loss over the whole batch, one microbatch at a time."""
        grad_accum_steps = self.spec.optimizer.grad_accum_steps
        if grad_accum_steps == 1:
            return self._microbatch_gradient(trainable, fixed, batch_stats, Microbatch(batch, 0, step_key))
        slices = jax.tree.map(lambda array: _split_rows(array, grad_accum_steps), batch)
        items = (jnp.arange(grad_accum_steps), slices)

        def microbatch_counts(item: tuple[jax.Array, Batch]) -> Denominators:
            index, batch_slice = item
            microbatch = Microbatch(batch_slice, index, step_key)
            outputs, _ = self.objective_outputs(trainable, fixed, batch_stats, microbatch)
            return get_counts(outputs)

        # The losses of each microbatch are divided by counts over the whole batch, so the counts are computed first.
        # XLA removes the forward pass of the model here, because only the counts, which are sums of masks, are used.
        denominators = jax.tree.map(jnp.sum, jax.lax.map(microbatch_counts, items))

        def add_microbatch(
            sums: tuple[Parameters, PyTree], item: tuple[jax.Array, Batch]
        ) -> tuple[tuple[Parameters, PyTree], dict[str, ObjectiveOutput]]:
            gradients, batch_stats = sums
            index, batch_slice = item
            microbatch = Microbatch(batch_slice, index, step_key)
            new = self._microbatch_gradient(trainable, fixed, batch_stats, microbatch, denominators)
            return (jax.tree.map(jnp.add, gradients, new.gradients), new.batch_stats), new.outputs

        initial = (jax.tree.map(jnp.zeros_like, trainable), batch_stats)
        (gradients, batch_stats), outputs = jax.lax.scan(add_microbatch, initial, items)
        return GradientResult(gradients, batch_stats, jax.tree.map(lambda stacked: stacked.sum(0), outputs))

    def _microbatch_gradient(
        self,
        trainable: Parameters,
        fixed: FixedInputs,
        batch_stats: PyTree,
        microbatch: Microbatch,
        denominators: Denominators | None = None,
    ) -> GradientResult:
        """Computes a microbatch's contribution to the gradient.

        `denominators` are the counts over the whole batch, or None if the microbatch is the whole batch. The value of
        the total loss is discarded, because the metrics contain each of its terms.
        """

        def loss(trainable: Parameters) -> tuple[jax.Array, tuple[PyTree, dict[str, ObjectiveOutput]]]:
            outputs, new_batch_stats = self.objective_outputs(trainable, fixed, batch_stats, microbatch)
            divisors = get_counts(outputs) if denominators is None else denominators
            return total_loss(self.objectives, outputs, divisors), (new_batch_stats, outputs)

        gradients, (new_batch_stats, outputs) = jax.grad(loss, has_aux=True)(trainable)
        return GradientResult(gradients, new_batch_stats, outputs)

    def _apply_optimizer(
        self, state: TrainState, gradients: Parameters, frozen: Parameters
    ) -> tuple[PyTree, optax.OptState]:
        """Returns the new parameters and optimizer state.

        All phases of unfreezing use one optimizer with the same state layout. It receives a gradient for every
        parameter, which is 0 for frozen parameters, and leaves these unchanged.
        """
        zeros = {path: jnp.zeros_like(value) for path, value in frozen.items()}
        all_gradients = traverse_util.unflatten_dict({**gradients, **zeros}, sep="/")
        updates, opt_state = self.optimizer.update(all_gradients, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state


def split_params(params: PyTree, frozen: frozenset[str]) -> tuple[Parameters, Parameters]:
    """Splits parameters into trainable and frozen parameters, each by path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    trainable = {path: value for path, value in flat.items() if path not in frozen}
    return trainable, {path: value for path, value in flat.items() if path in frozen}


def _split_rows(array: jax.Array, parts: int) -> jax.Array:
    """Reshapes [batch, ...] to [parts, batch / parts, ...] without moving rows between devices."""
    return array.reshape(array.shape[0] // parts, parts, *array.shape[1:]).swapaxes(0, 1)
