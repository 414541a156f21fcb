"""Learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from caption_jax.specs import OptimizerSpec

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def make_schedule(spec: OptimizerSpec, total_steps: int) -> Schedule:
    """Returns a schedule `step -> learning rate`, where `step` is the number of updates made so far.

    With t = step + 1, w = `warmup_steps`, T = `total_steps` and f = `final_fraction`, the learning rate is
    `learning_rate` times

    - t / w during warm-up (t <= w), so the first update is not zero and update w is the first at the full rate;
    - "constant": 1;
    - "linear": linear decay from 1 at t = w to f at the last update, t = T;
    - "cosine": cosine decay between the same endpoints (Loshchilov and Hutter 2017, "SGDR");
    - "rsqrt": sqrt(max(w, 1) / t) (Vaswani et al. 2017, section 5.3), which ignores T and f.

    Args:
        spec: the `optimizer` section of a run's spec.
        total_steps: T, the number of updates of the whole run.

    Raises:
        ValueError: `warmup_steps` is -1, which `resolve` replaces.
    """
    name, peak, final = spec.schedule, float(spec.learning_rate), float(spec.final_fraction)
    if spec.warmup_steps < 0:
        raise ValueError("warmup_steps is not resolved: pass the spec through `resolve`")
    warmup, decay_steps = spec.warmup_steps, max(total_steps - spec.warmup_steps, 1)
    after_warmup = {  # as functions of t - w
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, peak * final, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=final),
        "rsqrt": lambda steps: peak * jnp.sqrt(max(warmup, 1) / (steps + float(warmup))),
    }[name]
    if not warmup:
        return lambda step: after_warmup(step + 1)
    # optax.linear_schedule computes 1 - (1 - t / w), whose rounding error is visible early in a long warm-up.
    schedule_of_t = optax.join_schedules([lambda t: peak * (t / warmup), after_warmup], [warmup])
    return lambda step: schedule_of_t(step + 1)
