"""What every decoding method returns."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Decoded(flax.struct.PyTreeNode):
    """Captions of a batch of images: one or several ("candidates") for each.

    Beam search gives its candidates best first; sampling gives its draws in the order drawn; greedy gives one. Ranked
    by the image (`rerank`), candidates come best first. The properties without "all" are the first candidate's.

    Attributes:
        all_tokens: ids after <s>, up to and including </s>, then pads. A caption that was cut at the length limit has
            no </s>. Where the constraints allow no caption, all pads.
        all_token_log_probs: natural log of each token's probability under the model, whatever constraints, temperature
            or penalties chose it; 0 at pads.
        all_scores: what candidates are ranked by: in beam search the constrained log-probability over the length
            penalty, otherwise the log-probability, plus what `rerank` added; -inf where the constraints allow no
            caption.
        all_attention: cross-attention while each token was predicted, averaged over layers and heads, 0 at pads; None
            where not asked for.
    """

    all_tokens: Int[Array, "batch candidates length"]
    all_token_log_probs: Float[Array, "batch candidates length"]
    all_scores: Float[Array, "batch candidates"]
    all_attention: Float[Array, "batch candidates length memory"] | None = None

    @property
    def all_log_probs(self) -> Float[Array, "batch candidates"]:
        """Natural log of the probability of each whole caption, </s> included."""
        return jnp.where(jnp.isneginf(self.all_scores), -jnp.inf, self.all_token_log_probs.sum(-1))

    @property
    def tokens(self) -> Int[Array, "batch length"]:
        """Ids of the first candidate."""
        return self.all_tokens[:, 0]

    @property
    def log_prob(self) -> Float[Array, " batch"]:
        """Natural log of the probability of the first candidate, </s> included."""
        return self.all_log_probs[:, 0]

    @property
    def token_log_probs(self) -> Float[Array, "batch length"]:
        """That of each of its tokens."""
        return self.all_token_log_probs[:, 0]

    @property
    def score(self) -> Float[Array, " batch"]:
        """Its score."""
        return self.all_scores[:, 0]

    @property
    def attention(self) -> Float[Array, "batch length memory"] | None:
        """Where the model looked for each of its tokens."""
        return None if self.all_attention is None else self.all_attention[:, 0]


def gather_rows(array: jax.Array, rows: Int[Array, "batch chosen"]) -> jax.Array:
    """Rows `array[b, rows[b, i]]` of an array [batch, rows, ...]."""
    return jnp.take_along_axis(array, rows.reshape(*rows.shape, *(1,) * (array.ndim - 2)), axis=1)
