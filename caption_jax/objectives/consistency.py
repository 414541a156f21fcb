"""Consistency of the predictions under dropout, R-Drop (Liang et al. 2021, https://arxiv.org/abs/2106.14448).

This extension objective is enabled in the config by its import path:

    config.objective.terms = {
        "consistency": {"name": "caption_jax.objectives.consistency:Consistency", "weight": 1.0}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio
from caption_jax.ops.mixed_precision import einsum_float32
from caption_jax.ops.token_chunks import TokenChunks
from input_pipeline.spec_checks import check_fields, interval

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.objectives.forward_pass import ForwardPass

_CHUNK_SIZE = 512  # number of tokens per device whose logits are computed at a time


@dataclass(frozen=True)
class Consistency(Objective):
    """Penalises differences between the predictions of two passes of the decoder with different dropout masks.

    The loss of a token is the mean of KL(p || q) and KL(q || p) in nats, where p and q are the distributions of both
    passes over the vocabulary. The cross-entropy is that of the first pass alone. The second pass takes as long as the
    first one. The paper's loss is the sum of the cross-entropies of both passes plus alpha times the mean of both
    divergences, so its alpha is about twice `weight`.

    Reports `loss`, averaged over tokens.

    Attributes:
        weight: weight of this objective in the total loss.
    """

    weight: float = 1.0

    def __post_init__(self):
        check_fields(self, "Consistency", weight=interval("(0, inf)"))

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Decodes the captions again, and compares both predictions of each token."""
        del batch, constants, key
        states = jnp.stack([forward.decoded.states, forward.decode_again().states], axis=-2)
        loss = _compute_divergence(states, *model.output_layer(), forward.weights, forward.shards)
        return ObjectiveOutput(losses={"loss": Ratio(loss, forward.weights.sum())}, metrics={})


def _compute_divergence(
    states: Float[Array, "*tokens 2 width"],
    embedding: Float[Array, "vocabulary width"],
    bias: Float[Array, " vocabulary"],
    weights: Float[Array, "*tokens"],
    shards: int,
) -> Float[Array, ""]:
    """Returns the weighted sum of the symmetric divergences of all tokens.

    Logits are computed one chunk at a time, and computed again in the backward pass instead of stored. The gradients of
    all chunks are summed in float32, and on each device separately, so there is a single reduction over the devices.
    """
    chunks = TokenChunks(states.shape[:-2], _CHUNK_SIZE, shards)
    per_device = chunks.axes[:-1]
    embeddings = jnp.broadcast_to(embedding, (*per_device, *embedding.shape))
    biases = jnp.broadcast_to(bias, (*per_device, 1, 1, *bias.shape))

    @jax.checkpoint
    def compute_chunk(chunk: tuple[Float[Array, "*devices tokens 2 width"], Array]) -> Float[Array, "*devices"]:
        states, weights = chunk
        logits = einsum_float32("...tpd,...vd->...tpv", states, embeddings) + biases
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        first, second = log_probs[..., 0, :], log_probs[..., 1, :]
        # The sum of both divergences: sum((p - q) log p) + sum((q - p) log q).
        divergence = ((jnp.exp(first) - jnp.exp(second)) * (first - second)).sum(-1) / 2
        return (jnp.where(weights > 0, divergence, 0) * weights).sum(-1)

    return jax.lax.map(compute_chunk, (chunks.split(states), chunks.split(weights))).sum()
