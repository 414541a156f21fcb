"""The contrastive objective, which trains the joint embedding of images and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio
from caption_jax.parameters.sharding import batch_sharding, replicated
from input_pipeline.special_tokens import PAD

_MASKED = -1e9  # instead of -inf, whose gradients would be NaN; similarities are at most 1 / temperature


class Vectors(NamedTuple):
    """Unit vectors of images and captions in the joint embedding, and the scale of their inner products."""

    images: Float[Array, "batch width"]
    texts: Float[Array, "batch captions width"]
    scale: Float[Array, ""]


class ContrastiveLoss(NamedTuple):
    """Loss and accuracies as means over the images of a batch.

    Attributes:
        loss: contrastive loss in nats, averaged over all pairs of an image and one of its captions and over both
            directions.
        image_to_text: fraction of images whose nearest caption is one of their own.
        text_to_image: fraction of captions whose nearest image is their own.
    """

    loss: Ratio
    image_to_text: Ratio
    text_to_image: Ratio


@dataclass(frozen=True)
class Contrastive(Objective):
    """Pulls images and their captions together in the joint embedding, and pushes other pairs of the batch apart.

    Attributes:
        weight: weight of this objective in the total loss.
    """

    weight: float = 1.0
    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask", "index")
    accumulates: ClassVar[bool] = False  # a microbatch has fewer negatives, which gives a different, easier loss

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Returns the loss over the whole batch, across all devices; masked-out rows are ignored."""
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
    """Embeds the images and captions of a training batch in the joint embedding."""
    ids = forward.text_ids(tokens)
    texts = ids.reshape(-1, ids.shape[-1])
    embedded = model.embed_texts(texts, texts != PAD, train=True)
    return Vectors(
        model.embed_images(forward.images), embedded.reshape(*tokens.shape[:2], -1), model.similarity_scale()
    )


def contrastive_loss(vectors: Vectors, owner: Int[Array, " batch"], mesh: Mesh | None = None) -> ContrastiveLoss:
    """Symmetric InfoNCE with several captions per image.

    The loss of an image i and one of its captions p is
    `-log(exp(s(i, p)) / (exp(s(i, p)) + sum over n of exp(s(i, n))))`, where s is the scaled inner product and n runs
    over the captions of other images. The loss from captions to images is analogous, with n running over other images.
    With one caption per image this is the CLIP loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3).

    The other captions of an image are left out of the denominator. The alternative, a single softmax with its target
    spread over all positives (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2), makes the captions of
    an image compete: a caption with more than its target probability is pushed away from its own image.

    Every row is compared with all rows of the other modality. On a mesh, each device gathers those once and computes
    the loss of its own rows.

    Args:
        vectors: vectors of the whole batch.
        owner: id of the image in each row, so that duplicates of an image are not negatives of each other; -1 for rows
            to ignore.
        mesh: mesh over which the rows are sharded; None for a single device.
    """
    images, texts, scale = vectors
    all_images, all_texts, all_owners = (_all_gather(array, mesh) for array in (images, texts, owner))
    counts = (owner >= 0).astype(jnp.float32)
    is_negative = (owner[:, None] != all_owners) & (all_owners >= 0)
    positives = scale * _inner_products("nd,nkd->nk", images, texts)
    to_texts = jnp.where(is_negative[:, :, None], scale * _inner_products("nd,mkd->nmk", images, all_texts), _MASKED)
    to_images = jnp.where(is_negative[:, None, :], scale * _inner_products("nkd,md->nkm", texts, all_images), _MASKED)
    image_losses = jax.nn.softplus(jax.nn.logsumexp(to_texts, axis=(1, 2))[:, None] - positives)
    text_losses = jax.nn.softplus(jax.nn.logsumexp(to_images, axis=2) - positives)

    def mean(values: Float[Array, " batch"] | Bool[Array, " batch"]) -> Ratio:
        return Ratio(jnp.sum(values * counts), counts.sum())

    return ContrastiveLoss(
        mean(jnp.mean(image_losses + text_losses, axis=1) / 2),
        mean(positives.max(1) > to_texts.max((1, 2))),
        mean(jnp.mean(positives > to_images.max(2), axis=1)),
    )


def _all_gather(array: Array, mesh: Mesh | None) -> Array:
    """Replicates a batch-sharded array on all devices."""
    if mesh is None:
        return array
    rows = jax.lax.with_sharding_constraint(array, batch_sharding(mesh))
    return jax.lax.with_sharding_constraint(rows, replicated(mesh))


def _inner_products(indices: str, one: Array, other: Array) -> Array:
    # In full precision. Accelerators would round the vectors to 8 bits, and the scale magnifies small differences.
    return jnp.einsum(indices, one, other, precision=jax.lax.Precision.HIGHEST)
