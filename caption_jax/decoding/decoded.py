"""The output type of all decoding methods."""

from __future__ import annotations

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class Decoded(flax.struct.PyTreeNode):
    """Captions for a batch of images, with one or more candidates per image.

    Beam search and `rerank` sort the candidates, best first. Sampling returns unsorted samples, and greedy decoding one
    candidate. Properties without the prefix "all_" refer to the first candidate.

    Attributes:
        all_tokens: token ids after <s>, up to and including </s>, followed by padding. A caption truncated at the
            length limit has no </s>. All padding if the constraints allow no caption.
        all_token_log_probs: natural logarithm of each token's probability under the model, before any constraints,
            temperature or penalties; 0 at padding.
        all_scores: ranking score of each candidate. For beam search this is the constrained log-probability divided by
            the length penalty, otherwise the log-probability; `rerank` adds its similarity term. -inf if the
            constraints allow no caption.
        all_attention: cross-attention when predicting each token, averaged over layers and heads, 0 at padding; None
            unless requested.
    """

    all_tokens: Int[Array, "batch candidates length"]
    all_token_log_probs: Float[Array, "batch candidates length"]
    all_scores: Float[Array, "batch candidates"]
    all_attention: Float[Array, "batch candidates length memory"] | None = None

    @property
    def all_log_probs(self) -> Float[Array, "batch candidates"]:
        """Natural logarithm of the probability of each caption, including </s>."""
        return jnp.where(jnp.isneginf(self.all_scores), -jnp.inf, self.all_token_log_probs.sum(-1))

    @property
    def tokens(self) -> Int[Array, "batch length"]:
        """Token ids of the first candidate."""
        return self.all_tokens[:, 0]

    @property
    def log_prob(self) -> Float[Array, " batch"]:
        """Natural logarithm of the probability of the first candidate, including </s>."""
        return self.all_log_probs[:, 0]

    @property
    def token_log_probs(self) -> Float[Array, "batch length"]:
        """Natural logarithm of the probability of each token of the first candidate."""
        return self.all_token_log_probs[:, 0]

    @property
    def score(self) -> Float[Array, " batch"]:
        """Score of the first candidate."""
        return self.all_scores[:, 0]

    @property
    def attention(self) -> Float[Array, "batch length memory"] | None:
        """Cross-attention of each token of the first candidate; None unless requested."""
        return None if self.all_attention is None else self.all_attention[:, 0]


def gather_rows(
    array: Shaped[Array, "batch rows *features"], rows: Int[Array, "batch selected"]
) -> Shaped[Array, "batch selected *features"]:
    """Returns `array[b, rows[b, i]]`."""
    return jnp.take_along_axis(array, rows.reshape(*rows.shape, *(1,) * (array.ndim - 2)), axis=1)
