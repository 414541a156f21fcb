"""The extension point for terms of the loss: what a class that `config.objective.terms` names has to have.

docs/extending.md shows how to write one; `unlikelihood.py` is an example that nothing else knows of.
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
    """A mean that is not divided yet, so that those of several microbatches add up.

    Attributes:
        total: f32 scalar, a sum over tokens, images, or whatever is counted.
        count: f32 scalar, their number; has no gradient.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """`total / count`; 0 where nothing was counted."""
        return self.total / nonzero(self.count)


class ObjectiveOutput(NamedTuple):
    """What an objective computes for a microbatch, by name; metrics of training list an extension's as "label/name".

    Attributes:
        losses: their means, over the whole batch, are added to the loss, times the objective's weight.
        metrics: reported, and without effect on the gradient.
    """

    losses: dict[str, Ratio]
    metrics: dict[str, Ratio]


@runtime_checkable
class Objective(Protocol):
    """One or more terms of the loss: a frozen dataclass whose fields are its keys in the config.

    Explicit subclasses need no more than the field `weight` and `__call__`. Fields are checked in `__post_init__`,
    which raises `ConfigError`.

    Attributes:
        weight: of the objective's terms in the loss.
        batch_fields: fields of the batch that it reads. A step whose batch lacks one is refused.
        accumulates: whether its sums over microbatches add up to those over the whole batch. False for an objective
            that compares the rows of a batch with each other; `config.optimizer.accumulation` above 1 is then refused.
    """

    weight: float
    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask")
    accumulates: ClassVar[bool] = True

    def prepare(self, train: Split, vocabulary: Vocabulary) -> PyTree:
        """Constants that are made of the training split before the first step, such as statistics of its captions.

        They are stored with the run, and compared when it goes on: the same split, vocabulary and fields have to give
        the same arrays, on every process.

        Returns:
            Nested dictionaries of NumPy arrays; {} for none.
        """
        del train, vocabulary
        return {}

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Computes the terms over the rows of `batch`, inside the jitted step.

        Args:
            model: bound to its variables, in training mode for whoever passes `train=True`.
            forward: the pass of encoder and decoder that all objectives share.
            batch: one microbatch, with a leading axis of images.
            constants: what `prepare` returned, on the device.
            key: for random numbers of this objective, other ones for each step and microbatch.
        """
        ...


def nonzero(count: Float[Array, ""]) -> Float[Array, ""]:
    """A count to divide by: 1 in place of 0."""
    return jnp.where(count == 0, 1.0, count)
