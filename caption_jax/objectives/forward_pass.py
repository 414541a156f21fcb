"""What the terms of an objective share: the captioner's pass over a batch, and the tokens it is to predict."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline.special_tokens import PAD


def target_weights(batch: Mapping[str, jax.Array]) -> Float[Array, "batch captions targets"]:
    """Weight of each predicted token (captions without <s>): 0 for pads and padding rows, 1 for the others."""
    real = batch["tokens"][..., 1:] != PAD
    return (real & batch["mask"][:, None, None]).astype(jnp.float32)
