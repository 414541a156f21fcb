"""Images and texts as unit vectors of one space, where those that belong together lie close."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class SharedSpace(nn.Module):
    """A linear head for each side, and the temperature of their similarities (Radford et al. 2021, CLIP).

    Parameters: `image/kernel`, `text/kernel` and `log_scale`, the natural log of 1 / temperature
    (https://arxiv.org/abs/2103.00020, section 2.3). Everything here is float32: at a temperature of 0.01 bfloat16
    would blur the similarities by about 0.4.

    Attributes:
        width: of the space.
        temperature: similarities are divided by it, to begin with.
        min_temperature: it is learned, but never less than this.
    """

    width: int
    temperature: float = 0.07
    min_temperature: float = 0.01

    def setup(self) -> None:
        """Creates the parameters. Raises ValueError for temperatures that are out of order."""
        if not 0 < self.min_temperature <= self.temperature:
            raise ValueError(
                f"model.shared_space.temperature is {self.temperature}: it must be at least "
                f"model.shared_space.min_temperature={self.min_temperature}, and both above 0"
            )
        self.image = nn.Dense(self.width, use_bias=False)
        self.text = nn.Dense(self.width, use_bias=False)
        start = nn.initializers.constant(-math.log(self.temperature))
        self.log_scale = self.param("log_scale", start, (), jnp.float32)

    def images(self, vectors: Float[Array, "images hidden"]) -> Float[Array, "images width"]:
        """Unit vectors of images, from the image encoder's."""
        return _unit(self.image(vectors.astype(jnp.float32)))

    def texts(self, vectors: Float[Array, "texts hidden"]) -> Float[Array, "texts width"]:
        """Unit vectors of texts, from the text encoder's."""
        return _unit(self.text(vectors.astype(jnp.float32)))

    def scale(self) -> Float[Array, ""]:
        """What similarities are multiplied by: 1 / temperature, clamped."""
        return jnp.exp(at_most(self.log_scale, -math.log(self.min_temperature)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(value: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """`min(value, limit)`, whose gradient vanishes beyond the limit only where descent would lead further beyond.

    With the plain minimum's gradient, a parameter that its optimizer's momentum carries past the limit stays there.
    """
    return jnp.minimum(value, limit)


def _forward(value, limit):
    return jnp.minimum(value, limit), value


def _backward(limit, value, gradient):
    return (jnp.where((value >= limit) & (gradient < 0), 0.0, gradient),)


at_most.defvjp(_forward, _backward)


def _unit(vectors: Float[Array, "rows width"]) -> Float[Array, "rows width"]:
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))
