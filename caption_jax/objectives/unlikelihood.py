"""Unlikelihood training against repetition (Welleck et al. 2020, https://arxiv.org/abs/1908.04319).

This extension objective is enabled in the config by its import path:

    config.objective.terms = {
        "unlikelihood": {"name": "caption_jax.objectives.unlikelihood:Unlikelihood", "weight": 0.5}
    }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.errors import ConfigError
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio
from caption_jax.ops.mixed_precision import einsum_float32
from caption_jax.ops.token_chunks import TokenChunks

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.objectives.forward_pass import ForwardPass

_CHUNK_SIZE = 512  # number of tokens per device whose logits are computed at a time
_MIN_COMPLEMENT = 1e-5  # lower bound on 1 - p, as in the authors' code; nearly certain candidates have no gradient


@dataclass(frozen=True)
class Unlikelihood(Objective):
    """Penalises tokens that already occur in the caption (the token-level objective of the paper).

    The loss of a target x_t is the sum of -log(1 - p(c | x_<t, image)) over the candidates c, which are the distinct
    tokens among x_1, ..., x_(t-1) except x_t. <s> is not a candidate because it is never a target.

    Reports `loss`, in nats, and `repetition_probability`, the total probability of all candidates. Both are averaged
    over targets.

    Attributes:
        weight: weight of this objective in the total loss, alpha in the paper.
    """

    weight: float = 1.0

    def __post_init__(self):
        if not self.weight > 0:
            raise ConfigError(f"the weight of an unlikelihood objective must be above 0, got {self.weight}")

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Computes the loss from the log-probability of each token of a caption at each position of the caption.

        The logits of these few tokens are inner products of the decoder's states and rows of the output layer. Other
        tokens of the vocabulary only contribute to the normaliser.
        """
        del constants, key
        targets, weights = batch["tokens"][..., 1:], forward.to_captions(forward.weights)
        embedding, bias = model.output_layer()
        states = forward.to_captions(forward.decoded.states)
        logits = einsum_float32("bktd,bkcd->bktc", states, embedding[targets])
        logits += bias[targets][..., None, :]
        log_normaliser = forward.to_captions(_compute_log_normaliser(forward, embedding, bias))
        is_candidate = find_candidates(targets) & (weights[..., None] > 0)
        probabilities = jnp.exp(jnp.where(is_candidate, logits - log_normaliser[..., None], -jnp.inf))
        loss = -jnp.log(jnp.maximum(1 - probabilities, _MIN_COMPLEMENT))
        return ObjectiveOutput(
            losses={"loss": Ratio(loss.sum(), weights.sum())},
            metrics={"repetition_probability": Ratio(probabilities.sum(), weights.sum())},
        )


def find_candidates(targets: Int[Array, "*captions targets"]) -> Bool[Array, "*captions targets candidates"]:
    """Returns a mask of the candidates for each target, the first occurrences of other tokens at earlier positions."""
    length = targets.shape[-1]
    is_earlier = jnp.tril(jnp.ones((length, length), bool), -1)
    is_same = targets[..., :, None] == targets[..., None, :]
    is_first = ~(is_same & is_earlier).any(-1)  # first occurrence of a token in the caption
    return is_earlier & ~is_same & is_first[..., None, :]


def _compute_log_normaliser(
    forward: ForwardPass, embedding: Float[Array, "vocabulary width"], bias: Float[Array, " vocabulary"]
) -> Float[Array, "*tokens"]:
    """Returns the log-sum-exp of the logits over the vocabulary, per token.

    Logits are computed one chunk at a time, and computed again in the backward pass instead of stored. The gradients of
    all chunks are summed in float32, and on each device separately, so there is a single reduction over the devices.
    """
    states = forward.decoded.states
    chunks = TokenChunks(states.shape[:-1], _CHUNK_SIZE, forward.shards)
    per_device = chunks.axes[:-1]
    embeddings = jnp.broadcast_to(embedding, (*per_device, *embedding.shape))
    biases = jnp.broadcast_to(bias, (*per_device, 1, *bias.shape))

    @jax.checkpoint
    def compute_chunk(states: Float[Array, "*devices tokens width"]) -> Float[Array, "*devices tokens"]:
        logits = einsum_float32("...td,...vd->...tv", states, embeddings)
        return jax.nn.logsumexp(logits + biases, axis=-1)

    return chunks.merge(jax.lax.map(compute_chunk, chunks.split(states)))
