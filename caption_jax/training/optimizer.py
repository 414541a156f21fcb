"""The optimizer of a run, built from optax: rules per parameter, staged unfreezing, clipping; the moving average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jaxtyping import Array, Int

from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten, unflatten
from caption_jax.parameters.rules import ParameterRule, match_rules
from caption_jax.specs import OptimizerSpec
from caption_jax.training.schedules import Schedule, make_schedule

PyTree = Any


class FromStepState(NamedTuple):
    """State of `from_step`.

    Attributes:
        count: updates made, int32 scalar.
        inner_state: of the wrapped transformation, as it began until it starts.
    """

    count: Int[Array, ""]
    inner_state: PyTree


def from_step(start: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Starts `inner` after `start` updates, as if training began there: until then updates are 0 and its state stays.

    It selects where `optax.conditionally_mask` branches: on GPUs the host waits for the predicate of a branch.
    """

    def init(params: PyTree) -> FromStepState:
        return FromStepState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(gradients: PyTree, state: FromStepState, params: PyTree = None) -> tuple[PyTree, FromStepState]:
        updates, moved = inner.update(gradients, state.inner_state, params)
        if start > 0:
            active = state.count >= start
            updates = jax.tree.map(lambda update: jnp.where(active, update, 0), updates)
            moved = jax.tree.map(lambda new, old: jnp.where(active, new, old), moved, state.inner_state)
        return updates, FromStepState(state.count + 1, moved)

    return optax.GradientTransformation(init, update)


def is_decayed(path: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: only to parameters of two dimensions or more, never to a bias or a scale."""
    return len(shape) >= 2 and path.rpartition("/")[2] not in ("bias", "scale")


def make_optimizer(
    spec: OptimizerSpec, params: PyTree, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimizer of a run and its learning-rate schedule.

    An update is, in this order:

    1. gradients of parameters that are not yet unfrozen are taken as 0;
    2. those of all parameters that are trained are scaled so that their common norm is at most `clip_norm` (Pascanu et
       al. 2013); 0 leaves them as they are;
    3. the named method turns them into a direction. Its moments start when a parameter is unfrozen: until then they
       stay as they began, and Adam's bias correction counts from there;
    4. `weight_decay` times the parameter is added (decoupled, Loshchilov and Hutter 2019), times the rule's `decay`, on
       the parameters of `is_decayed` only;
    5. the result is multiplied by minus the learning rate times the rule's `lr`.

    Parameters that a rule freezes (`lr` 0) have updates of 0 and no moments. Parameters under equal rules form one
    group of `optax.partition`.

    Methods: "adamw"; "adam" (the same without step 4); "lion" (Chen et al. 2023); "sgd" with momentum `b1`; "adafactor"
    (Shazeer and Stern 2018: factored second moments, updates clipped to an RMS of 1, neither momentum nor relative
    step sizes; `b1` and `b2` play no part).

    Args:
        spec: of the optimizer.
        params: nested dictionary of parameters or of their shapes.
        total_steps: updates of the whole run, for the schedule.

    Returns:
        The optax transformation, whose `update` needs `params`, and `step -> learning rate`.

    Raises:
        ConfigError: as `match_rules`; nothing to train.
    """
    rules = match_rules(params, spec.rules)
    _check_starts(rules, total_steps)
    schedule = make_schedule(spec, total_steps)
    trained = jax.tree.map(lambda rule: rule.lr > 0, rules)
    decayed = unflatten({path: is_decayed(path, value.shape) for path, value in flatten(params).items()})

    def update_under(rule: ParameterRule) -> optax.GradientTransformation:
        if rule.lr == 0:
            return optax.set_to_zero()
        weight_decay = 0.0 if spec.name == "adam" else float(spec.weight_decay * rule.decay)
        direction = optax.chain(_method(spec), optax.add_decayed_weights(weight_decay, mask=decayed))
        learning_rate = optax.scale_by_learning_rate(lambda step: rule.lr * schedule(step))
        return optax.chain(from_step(rule.from_step, direction), learning_rate)

    distinct = sorted(set(jax.tree.leaves(rules)))
    clip = optax.clip_by_global_norm(float(spec.clip_norm)) if spec.clip_norm > 0 else optax.identity()
    optimizer = optax.named_chain(
        ("active", optax.partition({rule: from_step(rule.from_step, optax.identity()) for rule in distinct}, rules)),
        ("clip", optax.masked(clip, trained)),
        ("update", optax.partition({rule: update_under(rule) for rule in distinct}, rules)),
    )
    return optimizer, schedule


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
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda average, value: average + (weight * (value - average)).astype(average.dtype), ema, params
    )


def _check_starts(rules: PyTree, total_steps: int) -> None:
    """Raises ConfigError where nothing is trained; warns of parameters that would start after the last step."""
    groups: dict[int, list[str]] = {}
    for path, rule in flatten(rules).items():
        if rule.lr > 0:
            groups.setdefault(rule.from_step, []).append(path)
    if not groups:
        raise ConfigError("config.optimizer.rules freezes every parameter (lr 0): there is nothing to train")
    for start, paths in sorted(groups.items()):
        if start >= total_steps:
            logging.warning(
                "config.optimizer.rules: %d parameter arrays, such as %s, would train from step %d on, but the run has "
                "%d steps: they stay frozen",
                *(len(paths), paths[0], start, total_steps),
            )


def _method(spec: OptimizerSpec) -> optax.GradientTransformation:
    if spec.name in ("adamw", "adam"):
        return optax.scale_by_adam(b1=spec.b1, b2=spec.b2)
    if spec.name == "lion":
        return optax.scale_by_lion(b1=spec.b1, b2=spec.b2)
    if spec.name == "sgd":
        return optax.trace(decay=spec.b1)
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
