"""FLOPs of the forward and backward pass are counted before compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.planning.flops import MatrixFlops, count_matrix_flops
from caption_jax.planning.hlo import CompiledText
from caption_jax.planning.matrix_products import matrix_flops


def make_shape(*dimensions):
    return jax.ShapeDtypeStruct(dimensions, jnp.float32)


def test_each_gradient_of_a_matmul_costs_as_much_as_the_matmul():
    x, w = make_shape(5, 4), make_shape(4, 3)
    forward = 2 * 5 * 4 * 3
    assert count_matrix_flops(lambda p, x: x @ p, w, x) == MatrixFlops(forward, forward)
    assert count_matrix_flops(lambda p: p["x"] @ p["w"], {"x": x, "w": w}) == MatrixFlops(forward, 2 * forward)
    assert count_matrix_flops(lambda p, x, w: x @ w + p, make_shape(3), x, w) == MatrixFlops(forward, 0)
    assert count_matrix_flops(lambda w, x: lax.stop_gradient(w * 2).T @ x.T, w, make_shape(5, 4)).backward == 0


def test_matmuls_in_loops_and_branches_are_counted():
    w, x = make_shape(4, 4), make_shape(5, 4)
    forward = 2 * 5 * 4 * 4

    def loop(w, x):
        return lax.scan(lambda carry, _: (carry @ w, None), x, length=3)[0]

    # The input of the first iteration has no gradient, but all iterations are counted equally.
    assert count_matrix_flops(loop, w, x) == MatrixFlops(3 * forward, 6 * forward)

    def branch(w, x):
        return lax.cond(x[0, 0] > 0, lambda w, x: (x @ w) @ w, lambda w, x: x, w, x)

    assert count_matrix_flops(branch, w, x) == MatrixFlops(2 * forward, 3 * forward)

    def branch_for_platforms(w, x):
        return lax.platform_dependent(w, x, cpu=lambda w, x: (x @ w) @ w, default=lambda w, x: x @ w)

    assert count_matrix_flops(branch_for_platforms, w, x) == MatrixFlops(forward, forward)


def test_recomputed_matmuls_are_counted_once():
    w, x = make_shape(4, 4), make_shape(5, 4)
    expected = count_matrix_flops(lambda w, x: jnp.tanh(x @ w) @ w, w, x)
    assert count_matrix_flops(jax.checkpoint(lambda w, x: jnp.tanh(x @ w) @ w), w, x) == expected


def test_b0_has_the_published_multiply_adds():
    """Table 2 of the paper gives 0.39 billion, including 1.3 million for the classifier."""
    model = EfficientNet("b0")
    images = jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    flops = count_matrix_flops(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert flops.forward / 2 == pytest.approx(0.39e9, rel=0.02)
    assert 2.9 < flops.total / flops.forward < 3  # less than 3 because pixels have no gradient


def test_compiled_programs_have_no_more_flops_than_the_model():
    model = EfficientNet("micro")
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    flops = count_matrix_flops(lambda v, x: model.apply(v, x, train=False), variables, images)
    lowered = (
        jax.jit(lambda v, x: model.apply(v, x, train=False)).trace(variables, images).lower(lowering_platforms=("tpu",))
    )
    # Compiled programs omit multiplications by padding.
    assert 0.9 < matrix_flops(CompiledText(lowered.as_text("hlo"))) / flops.forward <= 1


def test_unused_matmuls_are_not_counted():
    w, x = make_shape(4, 4), make_shape(5, 4)

    def compute_with_unused_matmul(w, x):
        _ = x @ w @ w
        return x @ w

    assert count_matrix_flops(compute_with_unused_matmul, w, x) == count_matrix_flops(lambda w, x: x @ w, w, x)
