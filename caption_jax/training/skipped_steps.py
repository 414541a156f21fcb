"""Training steps that leave the state unchanged because they are not finite (`config.train.non_finite="skip"`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from caption_jax.training.optimizer import FromStepState
from caption_jax.training.state import TrainState

PyTree = Any

CHECKED = ("loss", "gradient_norm", "parameter_norm")  # metrics that must be finite
SKIPPED = "skipped_steps"  # metric: 1 if the step was skipped, otherwise 0


def skip_if_not_finite(
    old: TrainState, new: TrainState, metrics: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Undoes a step whose loss, gradients or updated parameters are not finite.

    The step counts, and so do the schedule of the learning rate and the phases of unfreezing, which depend on the
    number of steps. Parameters, averages, batch statistics and the moments of the optimizer do not change.

    Args:
        old: the state before the step.
        new: the state after the step.
        metrics: metrics of the step.

    Returns:
        The state to continue with, and the metrics with `SKIPPED`.
    """
    is_finite = jnp.isfinite(jnp.stack([metrics[name].astype(jnp.float32) for name in CHECKED])).all()
    state = new.replace(
        params=_select(is_finite, new.params, old.params),
        batch_stats=_select(is_finite, new.batch_stats, old.batch_stats),
        opt_state=_select_optimizer_state(is_finite, new.opt_state, old.opt_state),
        ema=_select(is_finite, new.ema, old.ema),
    )
    return state, {**metrics, SKIPPED: 1.0 - is_finite.astype(jnp.float32)}


def _select(is_finite: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    # A branch (`jax.lax.cond`) would make the host wait for its predicate on GPUs.
    return jax.tree.map(lambda after, before: jnp.where(is_finite, after, before), new, old)


def _select_optimizer_state(is_finite: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Like `_select`, but the counts of steps always advance."""

    def select(after: Any, before: Any) -> Any:
        if isinstance(after, FromStepState):
            inner_state = _select_optimizer_state(is_finite, after.inner_state, before.inner_state)
            return FromStepState(after.count, inner_state)
        if isinstance(after, optax.ScaleByScheduleState):
            return after
        return jnp.where(is_finite, after, before)

    has_step_count = (FromStepState, optax.ScaleByScheduleState)
    return jax.tree.map(select, new, old, is_leaf=lambda node: isinstance(node, has_step_count))
