"""What every decoding method returns."""

from __future__ import annotations

import flax.struct
from jaxtyping import Array, Float, Int


class Decoded(flax.struct.PyTreeNode):
    """A caption for each image.

    Attributes:
        tokens: ids after <s>, up to and including </s>, then pads. A caption that reached the length limit has no </s>.
        log_prob: natural log of the probability of all tokens of the caption, </s> included.
        token_log_probs: that of each token; 0 at pads.
        attention: cross-attention while each token was predicted, averaged over layers and heads, 0 at pads; None
            where not asked for.
    """

    tokens: Int[Array, "batch length"]
    log_prob: Float[Array, " batch"]
    token_log_probs: Float[Array, "batch length"]
    attention: Float[Array, "batch length memory"] | None
