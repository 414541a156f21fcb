"""Conversion of weights to the dtypes in which they are stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.errors import ConfigError
from caption_jax.parameters.stored_dtypes import convert_weights, find_stored_dtype, quantise, restore

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    """Returns normal values."""
    return RNG.normal(size=shape).astype(np.float32)


def make_variables() -> dict:
    """Returns variables with a large kernel, a large embedding, and arrays that remain float32."""
    dense = {"kernel": draw(64, 96), "bias": draw(96)}
    small = {"kernel": draw(8, 8), "scale": draw(8192)}
    params = {"decoder": {"embedding": draw(300, 16), "dense": dense}, "small": small}
    return {"params": params, "batch_stats": {"norm": {"kernel": draw(64, 64)}}}


@pytest.mark.parametrize("seed", range(12))
def test_the_error_of_each_channel_is_at_most_half_its_scale(seed):
    """Kernels of random sizes, whose channels differ in magnitude by many orders, or are 0."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 40, rng.integers(2, 5)))
    axis = int(rng.integers(-1, 1))
    channels = [1] * len(shape)
    channels[axis] = shape[axis]
    magnitudes = 10.0 ** rng.uniform(-30, 20, channels) * (rng.random(channels) > 0.2)
    array = (rng.normal(size=shape) * magnitudes).astype(np.float32)
    values, scales = quantise(array, axis)
    assert values.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == tuple(channels)
    assert values.min() >= -127
    error = np.abs(values * scales.astype(np.float64) - array)
    assert (error <= 0.50001 * scales).all()
    largest = np.abs(values).max(axis=tuple(i for i in range(array.ndim) if i != axis % array.ndim))
    assert set(np.unique(largest)) <= {0, 127}  # each channel uses the whole range, or is 0


def test_values_below_the_smallest_scale_become_zero():
    values, scales = quantise(np.full((4, 2), 1e-45, np.float32), -1)
    assert np.isfinite(values * scales).all() and not values.any()


def test_a_factor_per_channel_such_as_a_folded_norm_does_not_change_the_integers():
    kernel, factors = draw(64, 32), np.exp2(RNG.integers(-6, 6, 32)).astype(np.float32)
    values, scales = quantise(kernel, -1)
    folded_values, folded_scales = quantise(kernel * factors, -1)
    np.testing.assert_array_equal(values, folded_values)
    np.testing.assert_array_equal(scales * factors, folded_scales)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_only_large_kernels_and_embeddings_are_converted(dtype):
    variables = make_variables()
    converted = convert_weights(variables, dtype)
    assert find_stored_dtype(variables) == "float32" and find_stored_dtype(converted) == dtype
    decoder = converted["params"]["decoder"]
    for array, original in (
        (decoder["dense"]["kernel"], (64, 96)),
        (decoder["embedding"], (300, 16)),
    ):
        stored = array["int8"] if dtype == "int8" else array
        assert (stored.dtype, stored.shape) == (jnp.dtype(dtype), original)
    if dtype == "int8":
        assert decoder["dense"]["kernel"]["scales"].shape == (1, 96)  # per output channel
        assert decoder["embedding"]["scales"].shape == (300, 1)  # per row
    assert converted["params"]["small"] is not None and decoder["dense"]["bias"].dtype == np.float32
    jax.tree.map(np.testing.assert_array_equal, converted["params"]["small"], variables["params"]["small"])
    jax.tree.map(np.testing.assert_array_equal, converted["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_converting_back_gives_nearly_the_same_weights_and_converting_twice_changes_nothing(dtype):
    variables = make_variables()
    converted = convert_weights(variables, dtype)
    assert convert_weights(converted, dtype) is converted is convert_weights(converted, "stored")
    back = convert_weights(converted, "float32")
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for array, original in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, original, atol=0.02)
    again = convert_weights(back, dtype)
    for array, original in zip(jax.tree.leaves(again), jax.tree.leaves(converted), strict=True):
        np.testing.assert_allclose(np.float32(array), np.float32(original), rtol=1e-6)


def test_restored_variables_contain_float32_parameters_and_the_integers():
    variables = make_variables()
    assert restore(variables) is variables
    stored = convert_weights(variables, "int8")
    restored = jax.jit(restore)(stored)
    jax.tree.map(np.testing.assert_array_equal, restored["params"], convert_weights(stored, "float32")["params"])
    assert restored["int8"].keys() == {"decoder"} and restored["int8"]["decoder"]["dense"].keys() == {"kernel"}
    assert restored["int8"]["decoder"]["embedding"].values.dtype == jnp.int8
    half = jax.jit(restore)(convert_weights(variables, "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}


def test_weights_that_are_not_finite_and_unknown_dtypes_are_rejected():
    variables = make_variables()
    variables["params"]["decoder"]["dense"]["kernel"][3, 4] = np.nan
    with pytest.raises(ConfigError, match=r"^decoder/dense/kernel contains values that are not finite, .* checkpoint$"):
        convert_weights(variables, "int8")
    with pytest.raises(ConfigError, match=r"^unknown weights 'int4'; expected one of stored, float32, bfloat16, int8$"):
        convert_weights(variables, "int4")
