"""A dense layer whose backward pass is laid out for the processor it runs on."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jaxtyping import Array, Float


class Dense(nn.Module):
    """`x @ kernel + bias`, as `nn.Dense` has it, parameters included.

    On a CPU the kernel's gradient is a product of arrays that lie in memory as they are: the smaller of both factors is
    turned round in a pass of its own. Left to XLA, the larger one may be turned round, together with whatever made it,
    which takes about as long as the product.

    Attributes:
        features: numbers that come out.
        kernel_init: of the kernel.
    """

    features: int
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies to the last axis."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return _product(*(array.astype(self.dtype) for array in (x, kernel))) + bias.astype(self.dtype)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return jax.lax.platform_dependent(x, kernel, gradient, cpu=_gradients_on_cpu, default=_gradients)


def _gradients(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(jnp.dot, x, kernel)[1](gradient)


def _gradients_on_cpu(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, gradient = jax.lax.optimization_barrier((x, gradient))
    to_x = jnp.dot(gradient, kernel.T)
    x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.shape[-1] <= gradient.shape[-1]:
        return to_x, jnp.dot(jax.lax.optimization_barrier(x.T), gradient)
    return to_x, jax.lax.optimization_barrier(jnp.dot(jax.lax.optimization_barrier(gradient.T), x)).T


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _backward)
