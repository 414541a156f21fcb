"""The protocol of training objectives. A run adds objectives of its own with `config.objective.terms`.

See docs/extending.md for how to write an objective, and `unlikelihood.py` for a self-contained example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.objectives.forward_pass import ForwardPass
    from input_pipeline.records import Split
    from input_pipeline.tokenizer import Vocabulary

PyTree = Any
Batch = Mapping[str, jax.Array]


class Ratio(NamedTuple):
    """A mean, stored as a sum and a count so that it can be accumulated over microbatches.

    Attributes:
        total: float32 scalar, sum over tokens, images or other items.
        count: float32 scalar, number of items; has no gradient.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """Returns `total / count`, or 0 if `count` is 0."""
        return self.total / replace_zero(self.count)


class ObjectiveOutput(NamedTuple):
    """Losses and metrics of an objective for a microbatch, by name. Those of extensions are logged as "label/name".

    Attributes:
        losses: terms of the total loss. The mean of each over the whole batch is multiplied by the objective's weight.
        metrics: values that are logged but do not contribute to the gradient.
    """

    losses: dict[str, Ratio]
    metrics: dict[str, Ratio]


@runtime_checkable
class Objective(Protocol):
    """One or more terms of the loss, as a frozen dataclass whose fields are keys of the config.

    Explicit subclasses only have to define the field `weight` and `__call__`. Fields should be validated in
    `__post_init__`, which raises `ConfigError`.

    Attributes:
        weight: weight of the objective in the total loss.
        batch_fields: batch fields that the objective reads. Batches without them are rejected.
        accumulates: whether sums over microbatches add up to the sums over the whole batch. False for objectives that
            compare the rows of a batch with each other, which require `config.optimizer.grad_accum_steps` to be 1.
    """

    weight: float
    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask")
    accumulates: ClassVar[bool] = True

    def prepare(self, train: Split, vocabulary: Vocabulary) -> PyTree:
        """Computes constants from the training split before the first step, such as statistics of its captions.

        They are stored in the workdir and compared when the run resumes. This method must be deterministic. The same
        split, vocabulary and fields must result in the same arrays in every process.

        Returns:
            A nested dictionary of NumPy arrays, {} if there are none.
        """
        del train, vocabulary
        return {}

    def assume_constants(self, images: int, captions: int, vocabulary_size: int) -> PyTree:
        """Returns the typical shapes of the result of `prepare`, so that `plan` needs neither data nor vocabulary.

        Args:
            images: number of training images.
            captions: number of their captions.
            vocabulary_size: number of tokens.

        Returns:
            A nested dictionary of `jax.ShapeDtypeStruct`; {} if the shapes cannot be told, as by default.
        """
        del images, captions, vocabulary_size
        return {}

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Computes the losses and metrics of `batch`, inside the jitted training step.

        Args:
            model: model bound to its variables; pass `train=True` to its methods for training mode.
            forward: forward pass of the encoder and decoder, shared by all objectives.
            batch: one microbatch, with images along the leading axis of each array.
            constants: the result of `prepare`, on the device.
            key: PRNG key of this objective, different for each step and microbatch.
        """
        ...


def replace_zero(count: Float[Array, ""]) -> Float[Array, ""]:
    """Replaces a count of 0 with 1, for use as a divisor."""
    return jnp.where(count == 0, 1.0, count)
