"""The CPU implementation of the depthwise convolution and its gradients compared with XLA's convolution."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from program_stats import compute_stats
from shape_checks import unchecked_shapes

from caption_jax.ops.depthwise import depthwise_conv, explicit_padding
from caption_jax.planning.hlo import CompiledText
from caption_jax.planning.matrix_products import matrix_flops

CASES = list(itertools.product((1, 2), (3, 5), ("same", "symmetric"), ((8, 7), (9, 12), (2, 3))))


def reference_conv(x, kernel, *, stride, padding):
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


def compute_output_and_gradients(op, x, kernel, cotangent):
    """Returns the output, and the gradients for a cotangent that is cropped to the size of the output."""

    @jax.jit
    def compute(x, kernel):
        out, pullback = jax.vjp(op, x, kernel)
        return out, *pullback(cotangent[:, : out.shape[1], : out.shape[2]].astype(out.dtype))

    return compute(x, kernel)


def make_inputs(kernel_size, image_size, dtype=jnp.float32):
    """Returns a random input, kernel and cotangent."""
    rng = np.random.RandomState(sum(image_size) + kernel_size)
    x = jnp.asarray(rng.randn(2, *image_size, 6), dtype)
    kernel = jnp.asarray(rng.randn(kernel_size, kernel_size, 6), dtype)
    return x, kernel, jnp.asarray(rng.randn(2, *image_size, 6), dtype)


@pytest.mark.parametrize(("stride", "kernel_size", "padding", "image_size"), CASES)
def test_output_and_gradients_equal_those_of_the_xla_convolution(stride, kernel_size, padding, image_size):
    inputs = make_inputs(kernel_size, image_size)
    settings = {"stride": stride, "padding": padding}
    actual_arrays = compute_output_and_gradients(functools.partial(depthwise_conv, **settings), *inputs)
    expected_arrays = compute_output_and_gradients(functools.partial(reference_conv, **settings), *inputs)
    for actual, expected in zip(actual_arrays, expected_arrays, strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_results_are_exact_up_to_one_rounding(stride):
    inputs = make_inputs(5, (9, 12), jnp.bfloat16)
    float32_inputs = [array.astype(jnp.float32) for array in inputs]
    reference = functools.partial(reference_conv, stride=stride, padding="same")
    actual_arrays = compute_output_and_gradients(functools.partial(depthwise_conv, stride=stride), *inputs)
    exact_arrays = compute_output_and_gradients(reference, *float32_inputs)
    for actual, exact in zip(actual_arrays, exact_arrays, strict=True):
        assert actual.dtype == jnp.bfloat16
        # Sums are accumulated in float32, so the only error is one rounding to 8 significant bits.
        np.testing.assert_allclose(actual.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.usefixtures("eight_devices")
def test_gradients_of_a_sharded_batch_need_one_all_reduce(stride):
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    sharded, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x, kernel, _ = make_inputs(3, (8, 8))
    x = jnp.tile(x, (8, 1, 1, 1)) * jnp.arange(1, 17)[:, None, None, None]

    def loss(x, kernel):
        return jnp.sum(jnp.sin(depthwise_conv(x, kernel, stride=stride)))

    compute_gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    expected_arrays = compute_gradients(x, kernel)
    inputs = jax.device_put(x, sharded), jax.device_put(kernel, replicated)
    lowered = compute_gradients.lower(*inputs)
    compiled = lowered.compile()
    (collective,) = compute_stats(lowered, compiled, mesh, images=2)["collectives"]
    assert (collective["kind"], collective["count"]) == ("all-reduce", 1)  # of the kernel gradient
    assert collective["bytes"] == kernel.nbytes
    for actual, expected in zip(compiled(*inputs), expected_arrays, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)  # sums as large as 200, in another order


def test_only_accelerators_use_a_convolution_primitive():
    x, kernel, _ = make_inputs(3, (8, 8))
    compute_gradients = jax.jit(jax.grad(lambda x, kernel: jnp.sum(depthwise_conv(x, kernel)), argnums=(0, 1)))
    tpu_program, cpu_program = (
        CompiledText(compute_gradients.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text("hlo"))
        for platform in ("tpu", "cpu")
    )
    assert matrix_flops(tpu_program) > 0 == matrix_flops(cpu_program)


@pytest.mark.parametrize("image_size", [7, 8])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_padding_gives_the_output_size_of_its_rule(image_size, kernel_size):
    top, bottom = explicit_padding(image_size, image_size, kernel_size, 2, "same")[0]
    assert (image_size + top + bottom - kernel_size) // 2 + 1 == -(-image_size // 2)
    assert 0 <= bottom - top <= 1
    assert explicit_padding(image_size, image_size, kernel_size, 2, "symmetric") == ((kernel_size // 2,) * 2,) * 2
    with pytest.raises(ValueError, match="'same' or 'symmetric'"):
        explicit_padding(image_size, image_size, kernel_size, 2, "valid")


def test_a_kernel_with_the_wrong_number_of_channels_is_rejected():
    with unchecked_shapes(), pytest.raises(ValueError, match=r"\[k, k, 4\], not \(3, 3, 5\)"):
        depthwise_conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 5)))
