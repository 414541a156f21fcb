"""Scaled dot-product attention (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), with a float32 softmax."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.ops.mixed_precision import einsum_float32

Queries = Float[Array, "groups targets heads depth"]
Keys = Float[Array, "groups heads depth sources"]
Values = Float[Array, "groups heads sources depth"]
Mask = Bool[Array, "#groups #heads #targets sources"]
OutputAndWeights = tuple[Float[Array, "groups targets width"], Float[Array, "groups heads targets sources"]]

MASKED = -1e30  # finite, so the output is not NaN but a mean if all sources of a target are masked


def attend_reference(
    queries: Queries, keys: Keys, values: Values, mask: Mask | None, *, decoding: bool = False
) -> OutputAndWeights:
    """Computes the attention of each target over the sources.

    Args:
        queries: projected queries.
        keys: projected keys.
        values: projected values.
        mask: True where a target may attend to a source; None if it may attend to all sources.
        decoding: whether this is a decoding step, with few targets and no gradient. Does not affect the result.

    Returns:
        The attention output with heads concatenated, in the dtype of `values`, and the attention weights in float32.
    """
    del decoding
    queries = queries * queries.shape[-1] ** -0.5
    scores = jnp.einsum("gqhd,ghdn->ghqn", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, MASKED), axis=-1)
    output = jnp.einsum("ghqn,ghnd->gqhd", weights.astype(values.dtype), values)
    return output.reshape(*output.shape[:2], -1), weights


# Range of target counts for which sums are faster than matrix products on a CPU.
_FEW_TARGETS = range(2, 17)


def attend(
    queries: Queries, keys: Keys, values: Values, mask: Mask | None, *, decoding: bool = False
) -> OutputAndWeights:
    """`attend_reference`; on a CPU, the small matrix products of decoding are multiplications and sums in one loop.

    This avoids a matrix product call per head, and is 2.1 times as fast as the reference for 5 beams. Sums are used
    only for decoding, because their gradient is many times slower. A matrix product is faster for a single target, as
    in greedy decoding.
    """
    queries = queries.swapaxes(1, 2) * queries.shape[-1] ** -0.5
    if decoding and queries.shape[2] in _FEW_TARGETS:
        scores = _run_for_platform(_compute_scores_by_sum, _compute_scores, queries, keys)
        apply_on_cpu = _apply_weights_by_sum
    else:
        scores = _compute_scores(queries, keys)
        apply_on_cpu = _apply_weights
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    output = _run_for_platform(apply_on_cpu, _apply_weights, weights.astype(values.dtype), values).swapaxes(1, 2)
    return output.reshape(*output.shape[:2], -1), weights


def _run_for_platform(cpu: Callable, default: Callable, *arrays: Array) -> Array:
    if cpu is default:
        return cpu(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=cpu, default=default)


def _compute_scores(queries: Array, keys: Array) -> Array:
    return einsum_float32("ghqd,ghdn->ghqn", queries, keys)


def _compute_scores_by_sum(queries: Array, keys: Array) -> Array:
    return (queries[..., None].astype(jnp.float32) * keys[:, :, None]).sum(3)


def _apply_weights(weights: Array, values: Array) -> Array:
    return jnp.einsum("ghqn,ghnd->ghqd", weights, values)


def _apply_weights_by_sum(weights: Array, values: Array) -> Array:
    return (weights[..., None].astype(jnp.float32) * values[:, :, None]).sum(3).astype(values.dtype)
