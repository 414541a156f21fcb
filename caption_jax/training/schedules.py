"""Learning rate as a function of the number of updates made."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from caption_jax.specs import OptimizerSpec

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def make_schedule(spec: OptimizerSpec, total_steps: int) -> Schedule:
    """Returns `step -> learning rate`, for the update made when `step` updates have been made.

    With t = step + 1, w = `warmup_steps`, T = `total_steps` and f = `final_fraction`, the learning rate is
    `learning_rate` times

    - during the warm-up, t <= w: t / w, so the first update already moves and update w is the first at full rate;
    - "constant": 1;
    - "linear": 1 at t = w, falling in a straight line to f at t = T, the last update;
    - "cosine": the same ends, joined by half a cosine wave (Loshchilov and Hutter 2017, "SGDR");
    - "rsqrt": sqrt(max(w, 1) / t) (Vaswani et al. 2017, section 5.3); T and f play no part.

    Args:
        spec: of the optimizer.
        total_steps: T, the updates of the whole run.
    """
    name, peak, final = spec.schedule, float(spec.learning_rate), float(spec.final_fraction)
    warmup, falling_steps = spec.warmup_steps, max(total_steps - spec.warmup_steps, 1)
    after_warmup = {  # as functions of t - w
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final, falling_steps),
        "cosine": optax.cosine_decay_schedule(peak, falling_steps, alpha=final),
        "rsqrt": lambda steps: peak * jnp.sqrt(max(warmup, 1) / (steps + float(warmup))),
    }[name]
    if not warmup:
        return lambda step: after_warmup(step + 1)
    # optax.linear_schedule rises from 0 as 1 - (1 - t / w): rounding would show in the first of many warm-up steps.
    by_t = optax.join_schedules([lambda t: peak * (t / warmup), after_warmup], [warmup])
    return lambda step: by_t(step + 1)
