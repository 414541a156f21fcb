"""Dropout that spends an eighth of the random bits."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Float, Int


class Dropout(nn.Module):
    """Sets random elements to 0 and scales the others to keep the mean.

    One 64-bit draw of Threefry (Salmon et al., 2011) serves eight elements, many times as fast on a CPU as a draw an
    element. The rate is therefore a multiple of 1/256 (0.1 becomes 26/256), at least 1/256 where it is not 0; the scale
    is that of the rate used. The mask of a row depends on the key and the row's number only, not on where it lies or
    how the array is sharded.

    Attributes:
        rate: share of elements set to 0, in [0, 1). 0 draws nothing.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], *, train: bool, ids: Int[Array, "*batch"] | None = None
    ) -> Float[Array, "*batch width"]:
        """Returns `x` as it is when not `train`; otherwise reads the random stream "dropout".

        `ids` numbers the rows of `x`; None for their order.

        Raises:
            ValueError: the rate is outside [0, 1).
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"a dropout rate in config.model is {self.rate}; it has to be in [0, 1)")
        if not train or self.rate == 0:
            return x
        dropped = min(max(round(self.rate * 256), 1), 255)
        *batch, width = x.shape
        if ids is None:
            ids = jnp.arange(math.prod(batch)).reshape(batch)
        columns = jnp.arange(-(-width // 8), dtype=jnp.uint32)
        counters = jnp.broadcast_arrays(ids[..., None].astype(jnp.uint32), columns)
        key = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        # The primitive, as `threefry_2x32` would have both counters in one array, and devices exchange halves of it.
        words = threefry2x32_p.bind(*(jnp.full(counters[0].shape, word) for word in key), *counters)
        octets = [jax.lax.bitcast_convert_type(word, jnp.uint8).reshape(*batch, -1) for word in words]
        draws = jnp.concatenate(octets, axis=-1)[..., :width]
        scale = jnp.asarray(256 / (256 - dropped), x.dtype)
        return jnp.where(draws >= dropped, x * scale, jnp.zeros((), x.dtype))
