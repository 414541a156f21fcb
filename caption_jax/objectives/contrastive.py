"""The contrastive objective: an image and its captions lie close in one space, away from the rest of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio
from caption_jax.parameters.sharding import batch_sharding, replicated
from input_pipeline.special_tokens import PAD

_NEVER = -1e9  # in place of minus infinity, whose gradients are not numbers; similarities are at most 1 / temperature


class Vectors(NamedTuple):
    """Images and their captions in the shared space: unit vectors, and what their products are multiplied by."""

    images: Float[Array, "batch width"]
    texts: Float[Array, "batch captions width"]
    scale: Float[Array, ""]


class ContrastiveLoss(NamedTuple):
    """Means over the images of a batch, to be divided.

    Attributes:
        loss: nats, mean over all pairs of an image and a caption of it, and over both directions.
        image_to_text: fraction of images that have a caption of theirs closest.
        text_to_image: fraction of captions that have their image closest.
    """

    loss: Ratio
    image_to_text: Ratio
    text_to_image: Ratio


@dataclass(frozen=True)
class Contrastive(Objective):
    """Brings images and their captions together in the joint embedding.

    Attributes:
        weight: in the loss.
    """

    weight: float = 1.0
    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask", "index")
    accumulates: ClassVar[bool] = False  # a microbatch has fewer negatives: another, easier loss

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """The loss over the whole batch, whichever devices its rows lie on; rows outside the mask take no part."""
        vectors = joint_vectors(model, forward, batch["tokens"])
        pairs = contrastive_loss(vectors, jnp.where(batch["mask"], batch["index"], -1), forward.mesh)
        return ObjectiveOutput(
            losses={"contrastive_loss": pairs.loss},
            metrics={
                "temperature": Ratio(1 / vectors.scale, jnp.ones(())),
                "image_to_text_accuracy": pairs.image_to_text,
                "text_to_image_accuracy": pairs.text_to_image,
            },
        )


def joint_vectors(
    model: ImageCaptioningModel, forward: ForwardPass, tokens: Int[Array, "batch captions length"]
) -> Vectors:
    """Images and captions of a training batch in the joint embedding."""
    ids = forward.text_ids(tokens)
    texts = ids.reshape(-1, ids.shape[-1])
    embedded = model.embed_texts(texts, texts != PAD, train=True)
    return Vectors(
        model.embed_images(forward.images), embedded.reshape(*tokens.shape[:2], -1), model.similarity_scale()
    )


def contrastive_loss(vectors: Vectors, owner: Int[Array, " batch"], mesh: Mesh | None = None) -> ContrastiveLoss:
    """Symmetric InfoNCE with several captions an image, none of which is a negative of its image or of another.

    For an image i and a caption p of it, `-log(exp(s(i, p)) / (exp(s(i, p)) + sum over n of exp(s(i, n))))`, where n
    runs over the captions of other images and s is the scaled product; for the way from captions to images likewise,
    with n over other images. With one caption an image this is CLIP's loss (Radford et al. 2021,
    https://arxiv.org/abs/2103.00020, figure 3). Of the ways to have several positives this is the one that leaves an
    image's other captions out of each pair's denominator. The other, one softmax whose target is spread over all
    positives (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2), makes the captions of an image
    compete: one that takes more than its share of the probability is pushed away from its own image.

    Every row needs all other rows' vectors of the other side: on a mesh each device gathers these once, and computes
    the rows it holds.

    Args:
        vectors: of the whole batch.
        owner: which image each row is of, so that an image that comes twice is no negative of itself; -1 for rows that
            take no part.
        mesh: where the rows are spread; None for one device.
    """
    images, texts, scale = vectors
    all_images, all_texts, all_owners = (_gathered(array, mesh) for array in (images, texts, owner))
    counts = (owner >= 0).astype(jnp.float32)
    others = (owner[:, None] != all_owners) & (all_owners >= 0)
    own = scale * _products("nd,nkd->nk", images, texts)
    to_texts = jnp.where(others[:, :, None], scale * _products("nd,mkd->nmk", images, all_texts), _NEVER)
    to_images = jnp.where(others[:, None, :], scale * _products("nkd,md->nkm", texts, all_images), _NEVER)
    image_losses = jax.nn.softplus(jax.nn.logsumexp(to_texts, axis=(1, 2))[:, None] - own)
    text_losses = jax.nn.softplus(jax.nn.logsumexp(to_images, axis=2) - own)

    def mean(of_rows: Float[Array, " batch"]) -> Ratio:
        return Ratio(jnp.sum(of_rows * counts), counts.sum())

    return ContrastiveLoss(
        mean(jnp.mean(image_losses + text_losses, axis=1) / 2),
        mean(own.max(1) > to_texts.max((1, 2))),
        mean(jnp.mean(own > to_images.max(2), axis=1)),
    )


def _gathered(array: Array, mesh: Mesh | None) -> Array:
    """The whole of a batch-sharded array, on every device."""
    if mesh is None:
        return array
    rows = jax.lax.with_sharding_constraint(array, batch_sharding(mesh))
    return jax.lax.with_sharding_constraint(rows, replicated(mesh))


def _products(indices: str, one: Array, other: Array) -> Array:
    # In full precision: accelerators would round the vectors to 8 bits, and the scale makes much of small differences.
    return jnp.einsum(indices, one, other, precision=jax.lax.Precision.HIGHEST)
