"""One update as a pure function of state and batch; the loop does all input and output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from caption_jax.augment import augment
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.packing import Packing
from caption_jax.objectives.contrastive import ContrastiveObjective, Vectors
from caption_jax.objectives.forward_pass import target_weights
from caption_jax.runs.description import TextReader
from caption_jax.specs import RunSpec
from caption_jax.training.optimizer import ema_update
from caption_jax.training.state import TrainState
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Slice(NamedTuple):
    """Which part of a step's batch a gradient is of.

    Attributes:
        index: of the slice; its row r is row r * slices + index of the batch.
        key: of the step.
        total: tokens that count in the whole batch, what the loss is divided by.
    """

    index: int | jax.Array
    key: jax.Array
    total: jax.Array


class SliceGradient(NamedTuple):
    """What the slices of a batch add up to: gradients by path, batch-norm statistics, and metrics of the objective."""

    gradients: dict[str, jax.Array]
    batch_stats: PyTree
    metrics: Metrics


def forward(
    model: ImageCaptioningModel,
    images: jax.Array,
    tokens: jax.Array,
    contrastive: ContrastiveObjective | None,
    context: jax.Array | None = None,
    packing: Packing | None = None,
    start_after: str = "",
) -> tuple[tuple[jax.Array, ...], Vectors | None]:
    """The training pass of a model bound to its variables, for `model.apply(..., method=forward)`.

    Args:
        model: the bound model.
        images: normalised pixels [batch, height, width, 3], or the output of the encoder's stage `start_after`.
        tokens: whole captions [batch, captions, length]. The decoder reads all but their last token, and nothing that
            the text encoder made of them.
        contrastive: None for captions alone.
        context: other texts [batch, slots, length], in the text encoder's ids, for the decoder to attend to; None for
            the image alone.
        packing: of all tokens but each caption's last; None to compute for pads too.
        start_after: see `ImageCaptioningModel.encode_images`.

    Returns:
        What the loss is of: scores of each next token [batch, captions, length - 1, vocabulary], or, packed, the
        decoder's states and its output layer; and images and texts in the shared space.
    """
    features = model.encode_images(images, train=True, start_after=start_after)
    seen = features if context is None else model.add_context(features, context, context != PAD, train=True)
    output = model.decode(tokens[..., :-1], seen, packing=packing, train=True)
    # Packed: nothing reads output.logits, so XLA never computes them.
    scores = (output.logits,) if packing is None else (output.states, *model.output_layer())
    return scores, None if contrastive is None else contrastive.vectors(model, features, tokens)


def make_train_step(
    model: ImageCaptioningModel,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    spec: RunSpec,
    frozen: frozenset[str],
    contrastive: ContrastiveObjective | None = None,
    reader: TextReader | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `(state, batch) -> (state, metrics)`, ready for `jax.jit`.

    The batch is split into `config.optimizer.accumulation` slices; their gradients are summed and weighted by tokens,
    so the update is that of the whole batch (but for dropout masks, and batch norms that train: they see a slice). Only
    parameters outside `frozen` (paths such as "decoder/embedding") are differentiated, so nothing is computed backwards
    below the lowest of them.

    With `contrastive`, its loss is added; one pass of the image encoder serves both. It is of the whole batch, so it
    goes with one slice only.

    All randomness of a step comes from (seed, step); augmentation is the same however the batch is sliced.

    A batch holds "image", pixels, or "features": what the encoder's stage `config.data.feature_cache.stage` gave. Where
    it holds "context", captions of other images, `reader` gives them in the text encoder's ids. Where it holds "places"
    (`input_pipeline.packing`), the decoder computes nothing for pads; the result is the same.

    The functions below are called from the last to the first: step, batch_gradient, slice_gradient, loss_of, and from
    there `forward` and a cross-entropy.
    """

    slices = spec.optimizer.accumulation

    def encoder_input(batch: Batch, part: Slice) -> tuple[jax.Array, str]:
        """What goes into the image encoder, and the stage after which it goes there ("" for pixels)."""
        if "features" in batch:  # of views that were augmented when they were stored
            return batch["features"], spec.data.feature_cache.stage
        rows = jnp.arange(batch["image"].shape[0]) * slices + part.index
        images = augment(jax.random.fold_in(part.key, 0), batch["image"], spec.augment, rows, model.ops)
        return preprocessing.normalise(images), ""

    def loss_of(trainable: dict, fixed: dict, batch_stats: PyTree, batch: Batch, part: Slice):
        params = traverse_util.unflatten_dict({**fixed, **trainable}, sep="/")
        images, start_after = encoder_input(batch, part)
        context = reader.ids_of(batch["context"]) if "context" in batch else None
        targets, weights, packing = batch["tokens"][..., 1:], target_weights(batch), None
        if "places" in batch:
            packing = Packing.of(batch["places"], targets.shape)
            targets, weights = packing.pack(targets), packing.pack(weights)
        (scores, vectors), updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            batch["tokens"],
            contrastive,
            context,
            packing,
            start_after=start_after,
            rngs={"dropout": jax.random.fold_in(part.key, part.index + 1)},
            mutable=["batch_stats"],
            method=forward,
        )
        cross_entropy = model.ops.token_cross_entropy if packing is None else model.ops.vocabulary_cross_entropy
        captions = cross_entropy(*scores, targets, weights, spec.objective.label_smoothing)
        loss = captions.loss_sum / part.total
        # The metric "loss" is that of the tokens alone; what is added below has metrics of its own.
        metrics = {"loss": loss, "token_accuracy": captions.correct_sum / part.total}
        if contrastive is not None:
            pairs = contrastive.loss(vectors, batch)
            loss += contrastive.weight * pairs.loss
            metrics |= {
                "contrastive_loss": pairs.loss,
                "temperature": 1 / vectors.scale,
                "image_to_text_accuracy": pairs.image_to_text,
                "text_to_image_accuracy": pairs.text_to_image,
            }
        return loss, (updated["batch_stats"], metrics)

    def slice_gradient(trainable: dict, fixed: dict, batch_stats: PyTree, batch: Batch, part: Slice) -> SliceGradient:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, (batch_stats, metrics)), gradients = gradient(trainable, fixed, batch_stats, batch, part)
        return SliceGradient(gradients, batch_stats, metrics)

    def batch_gradient(trainable: dict, fixed: dict, batch_stats: PyTree, batch: Batch, whole: Slice) -> SliceGradient:
        if slices == 1:
            return slice_gradient(trainable, fixed, batch_stats, batch, whole)

        def add_slice(so_far: SliceGradient, item: tuple[jax.Array, Batch]) -> tuple[SliceGradient, None]:
            index, slice_batch = item
            new = slice_gradient(trainable, fixed, so_far.batch_stats, slice_batch, whole._replace(index=index))
            gradients, metrics = jax.tree.map(jnp.add, (so_far.gradients, so_far.metrics), (new.gradients, new.metrics))
            return SliceGradient(gradients, new.batch_stats, metrics), None

        # A zero for each metric of `loss_of`; the contrastive ones cannot be summed over slices.
        nothing = {"loss": jnp.zeros(()), "token_accuracy": jnp.zeros(())}
        none_yet = SliceGradient(jax.tree.map(jnp.zeros_like, trainable), batch_stats, nothing)
        items = (jnp.arange(slices), jax.tree.map(lambda a: _slice_rows(a, slices), batch))
        return jax.lax.scan(add_slice, none_yet, items)[0]

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
        # Flat, by path ("decoder/embedding"), as `frozen` names them: only the trainable ones are differentiated.
        params = traverse_util.flatten_dict(state.params, sep="/")
        trainable = {path: value for path, value in params.items() if path not in frozen}
        fixed = {path: value for path, value in params.items() if path in frozen}
        tokens = target_weights(batch).sum()
        whole = Slice(0, step_key, jnp.maximum(tokens, 1.0))
        gradients, batch_stats, metrics = batch_gradient(trainable, fixed, state.batch_stats, batch, whole)
        # One optimizer, with one layout of its state, serves all stages of unfreezing: it takes a gradient for every
        # parameter, and moves none that is frozen.
        zeros = {path: jnp.zeros_like(value) for path, value in fixed.items()}
        full = traverse_util.unflatten_dict({**gradients, **zeros}, sep="/")
        updates, opt_state = optimizer.update(full, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else ema_update(state.ema, new_params, spec.optimizer.ema, state.step)
        metrics |= {
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(new_params),
            "tokens": tokens,
        }
        new_state = state.replace(
            step=state.step + 1, params=new_params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
        )
        return new_state, metrics

    return step


def _slice_rows(array: jax.Array, slices: int) -> jax.Array:
    """[batch, ...] -> [slices, batch / slices, ...], each device keeping its own rows."""
    return array.reshape(array.shape[0] // slices, slices, *array.shape[1:]).swapaxes(0, 1)
