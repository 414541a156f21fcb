"""The contrastive objective: an image and its captions lie close in one space, away from the rest of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.parameters.sharding import batch_sharding, replicated
from caption_jax.runs.description import TextReader
from input_pipeline.special_tokens import PAD

_NEVER = -1e9  # in place of minus infinity, whose gradients are not numbers; similarities are at most 1 / temperature


class Vectors(NamedTuple):
    """Images and their captions in the shared space: unit vectors, and what their products are multiplied by."""

    images: Float[Array, "batch width"]
    texts: Float[Array, "batch captions width"]
    scale: Float[Array, ""]


class ContrastiveLoss(NamedTuple):
    """What a batch gave.

    Attributes:
        loss: f32 scalar, nats, mean over all pairs of an image and a caption of it, and over both directions.
        image_to_text: share of images that have a caption of theirs closest.
        text_to_image: share of captions that have their image closest.
    """

    loss: Float[Array, ""]
    image_to_text: Float[Array, ""]
    text_to_image: Float[Array, ""]


@dataclass(frozen=True)
class ContrastiveObjective:
    """The contrastive part of a run's objective.

    Attributes:
        weight: of its loss, beside that of the captions' tokens.
        reader: from captions to the text encoder's ids.
        mesh: where the batch lies.
    """

    weight: float
    reader: TextReader
    mesh: Mesh

    def vectors(
        self, model: ImageCaptioningModel, features: ImageFeatures, tokens: Int[Array, "batch captions length"]
    ) -> Vectors:
        """Puts a training batch in the shared space; `model` is bound to its variables."""
        ids = self.reader.ids_of(tokens)
        texts = ids.reshape(-1, ids.shape[-1])
        found = model.embed_texts(texts, texts != PAD, train=True)
        return Vectors(model.embed_images(features), found.reshape(*tokens.shape[:2], -1), model.similarity_scale())

    def loss(self, vectors: Vectors, batch: dict[str, jax.Array]) -> ContrastiveLoss:
        """The loss over the whole batch, whichever devices its rows lie on; rows outside the mask take no part."""
        owner = jnp.where(batch["mask"], batch["index"], -1)
        return contrastive_loss(vectors, owner, self.mesh)


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
    total = jnp.maximum(counts.sum(), 1.0)

    def mean(of_rows: Float[Array, " batch"]) -> Float[Array, ""]:
        return jnp.sum(of_rows * counts) / total

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
