"""The training state."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from caption_jax.training.saved_optimizer import from_saved, to_saved

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The arrays that each training step updates.

    Attributes:
        step: number of updates made, int32 scalar.
        params: parameters of the model.
        batch_stats: running statistics of the model's batch norms.
        opt_state: state of the optimizer.
        ema: exponential moving average of the parameters, or None if it is disabled in the config.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None

    def weights(self) -> PyTree:
        """Returns the variables for evaluation and inference, with averaged parameters unless averaging is disabled."""
        return {"params": self.params if self.ema is None else self.ema, "batch_stats": self.batch_stats}

    def resume_only(self) -> PyTree:
        """Returns the arrays that are needed in addition to `weights` to resume training."""
        raw_params = {} if self.ema is None else {"params": self.params}
        return {"step": self.step, "opt_state": to_saved(self.opt_state), **raw_params}

    def from_checkpoint(self, weights: PyTree, resume_only: PyTree) -> TrainState:
        """The inverse of `weights` and `resume_only`; `self` can be abstract."""
        averaged = self.ema is not None
        return self.replace(
            step=resume_only["step"],
            params=resume_only["params"] if averaged else weights["params"],
            batch_stats=weights["batch_stats"],
            opt_state=from_saved(resume_only["opt_state"], like=self.opt_state),
            ema=weights["params"] if averaged else None,
        )


def create_state(variables: PyTree, optimizer: optax.GradientTransformation, averaged: bool) -> TrainState:
    """Creates the initial train state.

    Args:
        variables: initial variables of the model.
        optimizer: gradient transformation for all parameters.
        averaged: whether to maintain an exponential moving average of the parameters.
    """
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if averaged else None,
    )
