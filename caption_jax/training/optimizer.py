"""The optimizer: rules for each parameter, staged unfreezing, clipping, and the moving average of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten, unflatten
from caption_jax.parameters.rules import match_rules
from caption_jax.training.schedules import Schedule, make_schedule

PyTree = Any

OPTIMIZERS = ("adamw", "adam", "lion", "sgd", "adafactor")


class OptimizerState(NamedTuple):
    """State of the optimizer.

    Attributes:
        count: updates made, int32 scalar.
        moments: optax's state for each group of parameters that start to train at the same step, by
            "from_step_<n>". Their trees hold these parameters only, under the same paths as in the model, so a frozen
            parameter takes no memory.
    """

    count: Int[Array, ""]
    moments: dict[str, PyTree]


def is_decayed(path: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: only to parameters of two dimensions or more, never to a bias or a scale."""
    return len(shape) >= 2 and path.rpartition("/")[2] not in ("bias", "scale")


def make_optimizer(
    config: ConfigDict, params: PyTree, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimizer of a run and its learning-rate schedule.

    An update is, in this order:

    1. gradients of frozen parameters are dropped, those of parameters not yet unfrozen taken as 0;
    2. the others are scaled so that their common norm is at most `clip_norm` (Pascanu et al. 2013);
    3. the named method turns them into a direction. Its moments start when a parameter is unfrozen: until then they
       stay as they began, and Adam's bias correction counts from there;
    4. `weight_decay` times the parameter is added (decoupled, Loshchilov and Hutter 2019), times the rule's `decay`, on
       the parameters of `is_decayed` only;
    5. the result is multiplied by minus the learning rate times the rule's `lr`.

    Methods: "adamw"; "adam" (the same without step 4); "lion" (Chen et al. 2023); "sgd" with momentum `b1`; "adafactor"
    (Shazeer and Stern 2018: factored second moments, updates clipped to an RMS of 1, neither momentum nor relative
    step sizes; `b1` and `b2` play no part).

    Args:
        config: `config.optimizer` of a run.
        params: nested dictionary of parameters or of their shapes.
        total_steps: updates of the whole run, for the schedule.

    Returns:
        The optax transformation, whose `update` needs `params`, and `step -> learning rate`.

    Raises:
        ValueError: as `match_rules` and `make_schedule`; unknown method; a value out of range; nothing to train.
    """
    _check(config)
    rules = flatten(match_rules(params, config.rules))
    schedule = make_schedule(config, total_steps)
    groups: dict[int, list[str]] = {}
    for path, rule in rules.items():
        if rule.lr > 0:
            groups.setdefault(rule.from_step, []).append(path)
    if not groups:
        raise ConfigError("config.optimizer.rules freezes every parameter (lr 0): there is nothing to train")
    groups = dict(sorted(groups.items()))
    for start, paths in groups.items():
        if start >= total_steps:
            logging.warning(
                "config.optimizer.rules: %d parameter arrays, such as %s, would train from step %d on, but the run has "
                "%d steps: they stay frozen",
                *(len(paths), paths[0], start, total_steps),
            )
    method = _method(config)
    weight_decay = 0.0 if config.name == "adam" else float(config.weight_decay)
    clip_norm = float(config.clip_norm)

    def init(params: PyTree) -> OptimizerState:
        flat = flatten(params)
        moments = {_group_name(start): method.init(_select(flat, paths)) for start, paths in groups.items()}
        return OptimizerState(jnp.zeros((), jnp.int32), moments)

    def update(gradients: PyTree, state: OptimizerState, params: PyTree) -> tuple[PyTree, OptimizerState]:
        flat_gradients, flat_params = flatten(gradients), flatten(params)
        active = {start: state.count >= start for start in groups if start > 0}
        scale = 1.0
        if clip_norm > 0:
            norm = _global_norm(flat_gradients, groups, active)
            scale = jnp.where(norm > clip_norm, clip_norm / norm, 1.0)
        learning_rate = schedule(state.count)
        updates = {path: jnp.zeros_like(value) for path, value in flat_params.items()}
        moments = {}
        for start, paths in groups.items():
            name = _group_name(start)
            clipped = _select({path: flat_gradients[path] * scale for path in paths}, paths)
            directions, moved = method.update(clipped, state.moments[name], _select(flat_params, paths))
            for path, direction in flatten(directions).items():
                rule = rules[path]
                if weight_decay and rule.decay and is_decayed(path, direction.shape):
                    direction = direction + weight_decay * rule.decay * flat_params[path]
                change = (-rule.lr * learning_rate * direction).astype(flat_params[path].dtype)
                updates[path] = jnp.where(active[start], change, 0) if start else change
            if start:
                moved = jax.tree.map(
                    lambda new, old, on=active[start]: jnp.where(on, new, old), moved, state.moments[name]
                )
            moments[name] = moved
        return unflatten(updates), OptimizerState(state.count + 1, moments)

    return optax.GradientTransformation(init, update), schedule


def ema_update(ema: PyTree, params: PyTree, decay: float, step: Int[Array, ""] | int) -> PyTree:
    """Moves the average towards `params`, which are those after the update made at `step`.

    The decay in effect is min(decay, (1 + step) / (10 + step)), so that the average forgets the initial weights soon
    instead of after 1 / (1 - decay) steps. A parameter that does not change keeps an average equal to it, bit for bit,
    where the average began at the initial parameters.

    Args:
        ema: the average before, same tree as `params`.
        params: the parameters now.
        decay: in [0, 1); 0.999 averages over about the last thousand steps.
        step: number of updates made before this one.
    """
    step = jnp.asarray(step, jnp.float32)
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, value: average + (share * (value - average)).astype(average.dtype), ema, params)


def _check(config: ConfigDict) -> None:
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name is {config.name!r}; it has to be one of {', '.join(OPTIMIZERS)}")
    for name in ("learning_rate", "weight_decay", "clip_norm"):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"optimizer.{name} is {getattr(config, name)}; it has to be 0 or more")
    for name in ("b1", "b2", "ema"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"optimizer.{name} is {getattr(config, name)}; it has to be in [0, 1)")


def _method(config: ConfigDict) -> optax.GradientTransformation:
    if config.name in ("adamw", "adam"):
        return optax.scale_by_adam(b1=config.b1, b2=config.b2)
    if config.name == "lion":
        return optax.scale_by_lion(b1=config.b1, b2=config.b2)
    if config.name == "sgd":
        return optax.trace(decay=config.b1)
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _global_norm(gradients: dict[str, Array], groups: dict[int, list[str]], active: dict) -> Float[Array, ""]:
    total = jnp.zeros(())
    for start, paths in groups.items():
        squares = sum(jnp.sum(jnp.square(gradients[path].astype(jnp.float32))) for path in paths)
        total += jnp.where(active[start], squares, 0.0) if start else squares
    return jnp.sqrt(total)


def _select(flat: dict[str, Any], paths: Sequence[str]) -> PyTree:
    return unflatten({path: flat[path] for path in paths})


def _group_name(start: int) -> str:
    return f"from_step_{start}"
