"""Random variables for a model without compiling its initialisation, which takes longer than most tests."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def random_variables(module: nn.Module, *inputs: Any, seed: int = 0, scale: float = 0.4, **options: Any) -> dict:
    """Returns random variables of `module` for the inputs. Biases, norms and running statistics are random as well."""
    shapes = jax.eval_shape(lambda *arrays: module.init(jax.random.key(0), *arrays, **options), *inputs)
    rng = np.random.default_rng(seed)

    def sample(path, shape: jax.ShapeDtypeStruct) -> jax.Array:
        noise = scale * rng.normal(size=shape.shape)
        leaf = path[-1].key
        return jnp.asarray(1 + 0.5 * np.abs(noise) if leaf in ("scale", "var") else noise, shape.dtype)

    return jax.tree_util.tree_map_with_path(sample, shapes)
