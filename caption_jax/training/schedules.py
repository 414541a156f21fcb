"""Learning rate as a function of the number of updates made."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from caption_jax.errors import ConfigError

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]

SCHEDULES = ("cosine", "rsqrt", "linear", "constant")


def make_schedule(config: ConfigDict, total_steps: int) -> Schedule:
    """Returns `step -> learning rate`, for the update made when `step` updates lie behind.

    With t = step + 1, w = `warmup_steps`, T = `total_steps` and f = `final_fraction`, the learning rate is
    `learning_rate` times

    - during the warm-up, t <= w: t / w, so the first update already moves and update w is the first at full rate;
    - "constant": 1;
    - "linear": 1 at t = w, falling in a straight line to f at t = T, the last update;
    - "cosine": the same ends, joined by half a cosine wave (Loshchilov and Hutter 2017, "SGDR");
    - "rsqrt": sqrt(max(w, 1) / t) (Vaswani et al. 2017, section 5.3); T and f play no part.

    Args:
        config: `config.optimizer` of a run.
        total_steps: T, the updates of the whole run.

    Raises:
        ValueError: unknown schedule, or a setting out of its range.
    """
    if config.schedule not in SCHEDULES:
        raise ConfigError(f"optimizer.schedule is {config.schedule!r}; it has to be one of {', '.join(SCHEDULES)}")
    if config.warmup_steps < 0 or total_steps < 1:
        raise ConfigError(
            f"{config.warmup_steps} warm-up steps of {total_steps}: optimizer.warmup_steps has to be >= 0"
        )
    if not 0 <= config.final_fraction <= 1:
        raise ConfigError(f"optimizer.final_fraction is {config.final_fraction}; it has to be in [0, 1]")
    # Plain numbers, so that a change of the config cannot reach a compiled step halfway.
    name, peak, final = str(config.schedule), float(config.learning_rate), float(config.final_fraction)
    warmup = int(config.warmup_steps)
    falling_steps = max(total_steps - warmup, 1)

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        t = jnp.asarray(step, jnp.float32) + 1
        progress = jnp.clip((t - warmup) / falling_steps, 0, 1)
        if name == "cosine":
            share = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        elif name == "linear":
            share = 1 - (1 - final) * progress
        elif name == "rsqrt":
            share = jnp.sqrt(max(warmup, 1) / jnp.maximum(t, max(warmup, 1)))
        else:
            share = jnp.ones_like(t)
        return peak * share * jnp.minimum(t / max(warmup, 1), 1)

    return schedule
