"""Joint embedding of images and texts as unit vectors, trained so that matching pairs are close."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class JointEmbedding(nn.Module):
    """A linear projection for each modality, and a learned temperature (CLIP; Radford et al., 2021).

    The parameters are `image/kernel`, `text/kernel` and `log_scale`, the natural log of 1 / temperature
    (https://arxiv.org/abs/2103.00020, section 2.3). All computation is in float32, because at a temperature of 0.01
    the rounding error of bfloat16 would change the scaled similarities by about 0.4.

    Attributes:
        width: dimension of the joint embedding.
        temperature: initial temperature, by which similarities are divided.
        min_temperature: lower bound of the learned temperature.
    """

    width: int
    temperature: float = 0.07
    min_temperature: float = 0.01

    def setup(self) -> None:
        """Creates the parameters. Raises ValueError unless 0 < min_temperature <= temperature."""
        if not 0 < self.min_temperature <= self.temperature:
            raise ValueError(
                f"config.model.joint_embedding.temperature is {self.temperature}; it must be at least "
                f"config.model.joint_embedding.min_temperature={self.min_temperature}, and both must be above 0"
            )
        self.image = nn.Dense(self.width, use_bias=False)
        self.text = nn.Dense(self.width, use_bias=False)
        init = nn.initializers.constant(-math.log(self.temperature))
        self.log_scale = self.param("log_scale", init, (), jnp.float32)

    def embed_images(self, vectors: Float[Array, "images hidden"]) -> Float[Array, "images width"]:
        """Projects the image encoder's vectors to unit vectors of the joint embedding."""
        return _normalise(self.image(vectors.astype(jnp.float32)))

    def embed_texts(self, vectors: Float[Array, "texts hidden"]) -> Float[Array, "texts width"]:
        """Projects the text encoder's vectors to unit vectors of the joint embedding."""
        return _normalise(self.text(vectors.astype(jnp.float32)))

    def similarity_scale(self) -> Float[Array, ""]:
        """Returns 1 / temperature, clamped to at most 1 / `min_temperature`."""
        return jnp.exp(clip_above(self.log_scale, -math.log(self.min_temperature)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_above(value: Float[Array, ""], maximum: float) -> Float[Array, ""]:
    """Returns `min(value, maximum)`. At or above the maximum, gradients that would increase `value` further are zero.

    With the gradient of `jnp.minimum`, a parameter that momentum has pushed past the maximum would never return.
    """
    return jnp.minimum(value, maximum)


def _forward(value, maximum):
    return jnp.minimum(value, maximum), value


def _backward(maximum, value, gradient):
    return (jnp.where((value >= maximum) & (gradient < 0), 0.0, gradient),)


clip_above.defvjp(_forward, _backward)


def _normalise(vectors: Float[Array, "vectors width"]) -> Float[Array, "vectors width"]:
    squared_norms = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared_norms, 1e-12))
