"""Scaled dot-product attention (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), softmax in float32."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Queries = Float[Array, "groups targets heads depth"]
Keys = Float[Array, "groups heads depth sources"]
Values = Float[Array, "groups heads sources depth"]
Mask = Bool[Array, "#groups #heads #targets sources"]
Attended = tuple[Float[Array, "groups targets width"], Float[Array, "groups heads targets sources"]]

MASKED = -1e30  # finite, so that a target that may look nowhere gets a mean rather than NaN


def attend_reference(
    queries: Queries, keys: Keys, values: Values, mask: Mask | None, *, decoding: bool = False
) -> Attended:
    """Mixes, for each target, the values of the sources that it may look at.

    Args:
        queries: projected queries.
        keys: projected keys.
        values: projected values.
        mask: True where a target may look; None for everywhere.
        decoding: whether this is a step of decoding: few targets, no gradient. The result does not depend on it.

    Returns:
        The mixed values, heads joined, in the dtype of `values`; and the weights in float32.
    """
    del decoding
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("gqhd,ghdn->ghqn", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, MASKED), axis=-1)
    mixed = jnp.einsum("ghqn,ghnd->gqhd", weights.astype(values.dtype), values)
    return mixed.reshape(*mixed.shape[:2], -1), weights


# Targets for which a CPU takes sums instead of products.
_FEW_TARGETS = range(2, 17)


def attend(queries: Queries, keys: Keys, values: Values, mask: Mask | None, *, decoding: bool = False) -> Attended:
    """`attend_reference`; on a CPU, the small products of decoding are multiplications and sums in one loop.

    Calls of a matrix product for each head cost more there; measured for a beam of 5: 2.4. (The gradient of the sums is
    many times slower, hence in decoding only.) A single target, as in greedy decoding, is faster as a product.
    """
    queries = queries.swapaxes(1, 2) * queries.shape[-1] ** -0.5
    if decoding and queries.shape[2] in _FEW_TARGETS:
        scores, mix = _on_cpu(_scores_by_sum, _scores, queries, keys), (_mix_by_sum, _mix)
    else:
        scores, mix = _scores(queries, keys), (_mix, _mix)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    mixed = _on_cpu(*mix, weights.astype(values.dtype), values).swapaxes(1, 2)
    return mixed.reshape(*mixed.shape[:2], -1), weights


def _on_cpu(cpu: Callable, default: Callable, *arrays: Array) -> Array:
    if cpu is default:
        return cpu(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _scores(queries: Array, keys: Array) -> Array:
    return jnp.einsum("ghqd,ghdn->ghqn", queries, keys, preferred_element_type=jnp.float32)


def _scores_by_sum(queries: Array, keys: Array) -> Array:
    return (queries[..., None].astype(jnp.float32) * keys[:, :, None]).sum(3)


def _mix(weights: Array, values: Array) -> Array:
    return jnp.einsum("ghqn,ghnd->ghqd", weights, values)


def _mix_by_sum(weights: Array, values: Array) -> Array:
    return (weights[..., None].astype(jnp.float32) * values[:, :, None]).sum(3).astype(values.dtype)
