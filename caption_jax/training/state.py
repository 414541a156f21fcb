"""All that a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from caption_jax.training.saved_optimizer import from_saved, to_saved

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The arrays of a run after `step` updates.

    Attributes:
        step: number of updates made, int32 scalar.
        params: parameters of the model.
        batch_stats: running statistics of its batch norms.
        opt_state: the optimizer's.
        ema: exponential moving average of the parameters, or None where the config asks for none.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None

    def weights(self) -> PyTree:
        """The variables that evaluation and inference use: averaged parameters where there are any."""
        return {"params": self.params if self.ema is None else self.ema, "batch_stats": self.batch_stats}

    def resume_only(self) -> PyTree:
        """The arrays that only a resumed run needs, besides `weights`."""
        raw = {} if self.ema is None else {"params": self.params}
        return {"step": self.step, "opt_state": to_saved(self.opt_state), **raw}

    def from_checkpoint(self, weights: PyTree, resume_only: PyTree) -> TrainState:
        """The inverse of `weights` and `resume_only`; `self` may be abstract."""
        averaged = self.ema is not None
        return self.replace(
            step=resume_only["step"],
            params=resume_only["params"] if averaged else weights["params"],
            batch_stats=weights["batch_stats"],
            opt_state=from_saved(resume_only["opt_state"], like=self.opt_state),
            ema=weights["params"] if averaged else None,
        )


def create_state(variables: PyTree, optimizer: optax.GradientTransformation, averaged: bool) -> TrainState:
    """Builds the state before the first step from initial variables."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if averaged else None,
    )
