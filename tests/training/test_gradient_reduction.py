"""In bfloat16, gradients are float32 up to the sum over devices, or bfloat16 for kernels if the config requests it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_step import GRADIENT, make_batch, make_step

from caption_jax.models.backbones.vit import VisionTransformer
from caption_jax.parameters.paths import flatten
from caption_jax.training.gradient_reduction import cast_kernels


def is_rounded(array: np.ndarray) -> bool:
    """Whether all values could be stored in bfloat16. Hardly any values of a float32 computation can."""
    return array.dtype == jnp.bfloat16 or np.array_equal(array, array.astype(jnp.bfloat16).astype(array.dtype))


def compute_gradients(objectives: str, **other: str) -> dict[str, np.ndarray]:
    """Returns the gradients of a step in bfloat16, by path."""
    result = make_step(objectives, "blocks", dtype="bfloat16", **other)(make_batch())
    gradients = {name.removeprefix(GRADIENT): array for name, array in result.items() if name.startswith(GRADIENT)}
    return {path: array for path, array in gradients.items() if array.any()}


@pytest.mark.slow
@pytest.mark.parametrize("objectives", ["captions", "contrastive", "context"])
def test_no_gradient_is_rounded_by_default(objectives):
    gradients = compute_gradients(objectives)
    assert len(gradients) > 50 and {array.dtype for array in gradients.values()} == {np.dtype(np.float32)}
    assert [path for path, array in gradients.items() if is_rounded(array)] == []


@pytest.mark.slow
def test_the_gradients_of_kernels_are_rounded_on_request():
    gradients = compute_gradients("contrastive", **{"train.gradient_reduction": "bfloat16"})
    rounded = {path for path, array in gradients.items() if is_rounded(array)}
    kernels = {path for path in gradients if path.endswith("/kernel")}
    assert rounded == kernels - {"joint_embedding/image/kernel", "joint_embedding/text/kernel"}


def test_no_gradient_of_a_vision_transformer_is_rounded():
    model = VisionTransformer("micro", dtype=jnp.bfloat16)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 32, 32, 3)), jnp.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))

    @jax.jit
    def compute(variables):
        return jax.grad(lambda variables: jnp.sum(jnp.sin(model.apply(variables, images, train=False))))(variables)

    gradients = flatten(jax.device_get(compute(variables)["params"]))
    assert [path for path, array in gradients.items() if array.any() and is_rounded(array)] == []


def test_only_kernels_that_are_computed_in_bfloat16_are_cast():
    params = {
        path: jnp.ones((2, 2)) for path in ("a/kernel", "a/bias", "norm/scale", "kernel", "joint_embedding/text/kernel")
    }
    cast = {path for path, value in cast_kernels(params, jnp.bfloat16).items() if value.dtype == jnp.bfloat16}
    assert cast == {"a/kernel"}
    assert all(value.dtype == jnp.float32 for value in cast_kernels(params, jnp.float32).values())
