"""Precision in which gradients are summed over devices (`config.train.gradient_reduction`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_COMPUTED_IN_FLOAT32 = "joint_embedding/"  # regardless of the compute dtype, see `models.joint_embedding`


def cast_kernels(params: dict[str, jax.Array], dtype: jnp.dtype) -> dict[str, jax.Array]:
    """Casts the kernels of matrix products and convolutions to the compute dtype.

    The operations of the models compute the gradient of a parameter in the dtype of the parameter, and XLA sums it over
    devices in this dtype. Kernels are cast by these operations in any case, so casting them before changes only
    the dtype of their gradients. Embeddings, biases and the parameters of norms remain as they are.

    Args:
        params: parameters by path.
        dtype: compute dtype of the model.
    """
    return {path: value.astype(dtype) if _is_cast(path) else value for path, value in params.items()}


def _is_cast(path: str) -> bool:
    return path.endswith("/kernel") and not path.startswith(_COMPUTED_IN_FLOAT32)
