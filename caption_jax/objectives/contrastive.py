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
    """Unit vectors of images and captions in the joint embedding space, and the scale of their inner products."""

    images: Float[Array, "batch width"]
    texts: Float[Array, "batch captions width"]
    scale: Float[Array, ""]


class ContrastiveLoss(NamedTuple):
    """Loss and accuracies, averaged over the images of a batch.

    Attributes:
        loss: contrastive loss in nats, averaged over all matching image-caption pairs and both directions.
        image_to_text: fraction of images whose nearest caption matches.
        text_to_image: fraction of captions whose nearest image matches.
    """

    loss: Ratio
    image_to_text: Ratio
    text_to_image: Ratio


@dataclass(frozen=True)
class Contrastive(Objective):
    """Pulls images and their captions together in the joint embedding space, and pushes other pairs apart.

    Attributes:
        weight: weight of this objective in the total loss.
    """

    weight: float = 1.0
    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask", "index")
    accumulates: ClassVar[bool] = False  # a microbatch has fewer negatives, which makes the task easier

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Returns the loss over the whole batch, across all devices; masked-out rows are ignored."""
        vectors = embed_batch(model, forward, batch["tokens"])
        result = contrastive_loss(vectors, jnp.where(batch["mask"], batch["index"], -1), forward.mesh)
        return ObjectiveOutput(
            losses={"contrastive_loss": result.loss},
            metrics={
                "temperature": Ratio(1 / vectors.scale, jnp.ones(())),
                "image_to_text_accuracy": result.image_to_text,
                "text_to_image_accuracy": result.text_to_image,
            },
        )


def embed_batch(
    model: ImageCaptioningModel, forward: ForwardPass, tokens: Int[Array, "batch captions length"]
) -> Vectors:
    """Embeds the images and captions of a training batch in the joint embedding space."""
    ids = forward.text_ids(tokens)
    ids = ids.reshape(-1, ids.shape[-1])
    texts = model.embed_texts(ids, ids != PAD, train=True).reshape(*tokens.shape[:2], -1)
    return Vectors(model.embed_images(forward.image_features), texts, model.similarity_scale())


def contrastive_loss(vectors: Vectors, image_ids: Int[Array, " batch"], mesh: Mesh | None = None) -> ContrastiveLoss:
    """Computes a symmetric InfoNCE loss with several captions per image.

    The loss of an image i and one of its captions p is
    `-log(exp(s(i, p)) / (exp(s(i, p)) + sum over n of exp(s(i, n))))`, where s is the scaled inner product and n runs
    over the captions of other images. The loss from captions to images is analogous, with n running over other images.
    With one caption per image this is the CLIP loss (Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3).

    The denominator excludes the other captions of the image. The alternative, a single softmax with its target
    distributed over all positives (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2), makes the
    captions of an image compete, because a caption above its target probability is pushed away from the image.

    Every row is compared with all rows of the other modality. On a mesh, each device gathers these once and computes
    the loss of its local rows.

    Args:
        vectors: vectors of the whole batch.
        image_ids: id of the image in each row, so that duplicates of an image are not negatives of each other; -1 for
            rows to ignore.
        mesh: mesh over which the rows are sharded; None for a single device.
    """
    images, texts, scale = vectors
    all_images, all_texts, all_ids = (_all_gather(array, mesh) for array in (images, texts, image_ids))
    row_weights = (image_ids >= 0).astype(jnp.float32)
    is_negative = (image_ids[:, None] != all_ids) & (all_ids >= 0)
    positives = scale * _compute_inner_products("nd,nkd->nk", images, texts)
    to_texts = scale * _compute_inner_products("nd,mkd->nmk", images, all_texts)
    to_images = scale * _compute_inner_products("nkd,md->nkm", texts, all_images)
    to_texts = jnp.where(is_negative[:, :, None], to_texts, _MASKED)
    to_images = jnp.where(is_negative[:, None, :], to_images, _MASKED)
    image_losses = jax.nn.softplus(jax.nn.logsumexp(to_texts, axis=(1, 2))[:, None] - positives)
    text_losses = jax.nn.softplus(jax.nn.logsumexp(to_images, axis=2) - positives)

    def mean(values: Float[Array, " batch"] | Bool[Array, " batch"]) -> Ratio:
        return Ratio(jnp.sum(values * row_weights), row_weights.sum())

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


def _compute_inner_products(subscripts: str, left: Array, right: Array) -> Array:
    # Accelerators would round inputs to bfloat16 or TF32 by default, and the scale would amplify the error.
    return jnp.einsum(subscripts, left, right, precision=jax.lax.Precision.HIGHEST)
