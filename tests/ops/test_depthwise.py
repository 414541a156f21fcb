"""The CPU implementation of the depthwise convolution and its two gradients, against XLA's convolution."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from program_figures import compute_figures
from shape_checks import unchecked_shapes

from caption_jax.ops.depthwise import depthwise_conv, explicit_padding
from caption_jax.planning.hlo import CompiledText

CASES = list(itertools.product((1, 2), (3, 5), ("same", "symmetric"), ((8, 7), (9, 12), (2, 3))))


def reference(x, kernel, *, stride, padding):
    pads = "SAME" if padding == "same" else [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
    )


def forward_and_gradients(op, x, kernel, weights):
    """Returns the result and the gradients of its weighted sum."""

    def both(x, kernel):
        out, pullback = jax.vjp(op, x, kernel)
        return out, *pullback(weights[:, : out.shape[1], : out.shape[2]].astype(out.dtype))

    return jax.jit(both)(x, kernel)


def numbers(size, shape, dtype=jnp.float32):
    random = np.random.RandomState(sum(shape) + size)
    x = jnp.asarray(random.randn(2, *shape, 6), dtype)
    kernel = jnp.asarray(random.randn(size, size, 6), dtype)
    return x, kernel, jnp.asarray(random.randn(2, *shape, 6), dtype)


@pytest.mark.parametrize(("stride", "size", "padding", "shape"), CASES)
def test_equals_the_convolution_of_xla(stride, size, padding, shape):
    x, kernel, weights = numbers(size, shape)
    settings = {"stride": stride, "padding": padding}
    ours = forward_and_gradients(functools.partial(depthwise_conv, **settings), x, kernel, weights)
    expected_arrays = forward_and_gradients(functools.partial(reference, **settings), x, kernel, weights)
    for actual, expected in zip(ours, expected_arrays, strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_is_exact_up_to_one_rounding(stride):
    x, kernel, weights = numbers(5, (9, 12), jnp.bfloat16)
    ours = forward_and_gradients(functools.partial(depthwise_conv, stride=stride), x, kernel, weights)
    single = [a.astype(jnp.float32) for a in (x, kernel, weights)]
    exact_arrays = forward_and_gradients(functools.partial(reference, stride=stride, padding="same"), *single)
    for actual, exact in zip(ours, exact_arrays, strict=True):
        assert actual.dtype == jnp.bfloat16
        # Sums are in float32, so the only error is one rounding to 8 bits.
        np.testing.assert_allclose(actual.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_sharded_batch_is_not_moved(stride):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x, kernel, _ = numbers(3, (8, 8))
    x = jnp.tile(x, (8, 1, 1, 1)) * jnp.arange(1, 17)[:, None, None, None]

    def loss(x, kernel):
        return jnp.sum(jnp.sin(depthwise_conv(x, kernel, stride=stride)))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    alone = gradients(x, kernel)
    lowered = gradients.lower(jax.device_put(x, rows), jax.device_put(kernel, replicated))
    split = lowered.compile()
    (reduction,) = compute_figures(lowered, split, mesh, images=2)["collectives"]
    assert (reduction["kind"], reduction["count"]) == ("all-reduce", 1)  # one, of the kernel gradient
    assert reduction["bytes"] == kernel.nbytes
    for one, eight in zip(alone, split(jax.device_put(x, rows), jax.device_put(kernel, replicated)), strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-4)  # sums up to 200, in another order


def test_accelerators_use_their_own_convolution():
    x, kernel, _ = numbers(3, (8, 8))
    gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sum(depthwise_conv(x, kernel)), argnums=(0, 1)))
    on_tpu, on_cpu = (
        CompiledText(gradients.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text("hlo"))
        for platform in ("tpu", "cpu")
    )
    assert on_tpu.matrix_flops() > 0 == on_cpu.matrix_flops()


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_rules(size, kernel):
    top, bottom = explicit_padding(size, size, kernel, 2, "same")[0]
    assert (size + top + bottom - kernel) // 2 + 1 == -(-size // 2)
    assert 0 <= bottom - top <= 1
    assert explicit_padding(size, size, kernel, 2, "symmetric") == ((kernel // 2,) * 2,) * 2
    with pytest.raises(ValueError, match="'same' or 'symmetric'"):
        explicit_padding(size, size, kernel, 2, "valid")


def test_a_kernel_that_does_not_fit_is_rejected():
    with unchecked_shapes(), pytest.raises(ValueError, match=r"\[k, k, 4\], not \(3, 3, 5\)"):
        depthwise_conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 5)))
