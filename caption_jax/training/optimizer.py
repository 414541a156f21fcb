"""The optax optimizer of a run, with per-parameter rules, gradual unfreezing, clipping and weight averaging."""

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
        count: number of updates made, int32 scalar.
        inner_state: state of the wrapped transformation, which keeps its initial value until it starts.
    """

    count: Int[Array, ""]
    inner_state: PyTree


def from_step(start: int, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Delays `inner` by `start` updates. Until then, updates are 0 and its state does not change.

    Uses `jnp.where` instead of the branch of `optax.conditionally_mask`, because on GPUs the host waits for the
    predicate of a branch.
    """

    def init(params: PyTree) -> FromStepState:
        return FromStepState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(gradients: PyTree, state: FromStepState, params: PyTree = None) -> tuple[PyTree, FromStepState]:
        updates, inner_state = inner.update(gradients, state.inner_state, params)
        if start > 0:
            active = state.count >= start
            updates = jax.tree.map(lambda update: jnp.where(active, update, 0), updates)
            inner_state = jax.tree.map(lambda new, old: jnp.where(active, new, old), inner_state, state.inner_state)
        return updates, FromStepState(state.count + 1, inner_state)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, which multiplies gradients by a factor instead of dividing them by their norm.

    XLA fuses a multiplication into both moments of Adam, but computes and stores the result of a division once.
    """

    def update(gradients: PyTree, state: optax.EmptyState, params: PyTree = None) -> tuple[PyTree, optax.EmptyState]:
        del params
        norm = optax.tree.norm(gradients)
        factor = max_norm / jnp.maximum(norm, max_norm)
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_decayed(path: str, shape: tuple[int, ...]) -> bool:
    """Returns whether weight decay applies to a parameter, i.e. it has two or more axes and is not a bias or scale."""
    return len(shape) >= 2 and path.rpartition("/")[2] not in ("bias", "scale")


def make_optimizer(
    spec: OptimizerSpec, params: PyTree, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
    """Builds the optimizer of a run and its learning-rate schedule.

    An update consists of the following steps:

    1. Gradients of parameters that are still frozen are set to 0.
    2. The gradients of all trained parameters are clipped to a global norm of `clip_norm` (Pascanu et al. 2013); 0
       disables clipping.
    3. The optimizer `name` computes the update direction. The moments of a parameter keep their initial values until it
       is unfrozen, and the step count for Adam's bias correction starts then.
    4. Decoupled weight decay (Loshchilov and Hutter 2019) of `weight_decay` times the rule's `decay` is added for
       parameters that satisfy `is_decayed`.
    5. The result is multiplied by the negative learning rate times the rule's `lr`.

    Parameters frozen by a rule (`lr` 0) have zero updates and no moments. Parameters with equal rules form one group of
    `optax.partition`.

    Optimizers: "adamw"; "adam" (without step 4); "lion" (Chen et al. 2023); "sgd" with momentum `b1`; "adafactor"
    (Shazeer and Stern 2018) with factored second moments and updates clipped to an RMS of 1, but without momentum or
    relative step sizes (`b1` and `b2` are ignored).

    Args:
        spec: the `optimizer` section of a run's spec.
        params: nested dictionary of parameters or their shapes.
        total_steps: number of updates of the whole run, for the schedule.

    Returns:
        The optax transformation, whose `update` requires `params`, and the schedule `step -> learning rate`.

    Raises:
        ConfigError: the rules are invalid (see `match_rules`) or freeze all parameters.
    """
    rules = match_rules(params, spec.rules)
    _check_starts(rules, total_steps)
    schedule = make_schedule(spec, total_steps)
    trainable_mask = jax.tree.map(lambda rule: rule.lr > 0, rules)
    decay_mask = unflatten({path: is_decayed(path, value.shape) for path, value in flatten(params).items()})

    def make_transformation(rule: ParameterRule) -> optax.GradientTransformation:
        if rule.lr == 0:
            return optax.set_to_zero()
        weight_decay = 0.0 if spec.name == "adam" else float(spec.weight_decay * rule.decay)
        direction = optax.chain(_make_base(spec), optax.add_decayed_weights(weight_decay, mask=decay_mask))
        learning_rate = optax.scale_by_learning_rate(lambda step: rule.lr * schedule(step))
        return optax.chain(from_step(rule.from_step, direction), learning_rate)

    distinct = sorted(set(jax.tree.leaves(rules)))
    clip = clip_by_global_norm(float(spec.clip_norm)) if spec.clip_norm > 0 else optax.identity()
    optimizer = optax.named_chain(
        ("active", optax.partition({rule: from_step(rule.from_step, optax.identity()) for rule in distinct}, rules)),
        ("clip", optax.masked(clip, trainable_mask)),
        ("update", optax.partition({rule: make_transformation(rule) for rule in distinct}, rules)),
    )
    return optimizer, schedule


def ema_update(ema: PyTree, params: PyTree, decay: float, step: Int[Array, ""] | int) -> PyTree:
    """Updates an exponential moving average of the parameters.

    The effective decay is min(decay, (1 + step) / (10 + step)), so the influence of the initial weights vanishes early
    instead of after about 1 / (1 - decay) steps. If the average starts at the initial parameters, the averages of
    parameters that never change remain bit-identical to them.

    Args:
        ema: the previous average, with the structure of `params`.
        params: the parameters after the update at `step`.
        decay: decay in [0, 1); 0.999 averages over roughly the last thousand steps.
        step: number of updates made before this update.
    """
    step = jnp.asarray(step, jnp.float32)
    weight = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(
        lambda average, value: average + (weight * (value - average)).astype(average.dtype), ema, params
    )


def _check_starts(rules: PyTree, total_steps: int) -> None:
    """Raises ConfigError if nothing is trained, and warns about parameters that would start after the last step."""
    groups: dict[int, list[str]] = {}
    for path, rule in flatten(rules).items():
        if rule.lr > 0:
            groups.setdefault(rule.from_step, []).append(path)
    if not groups:
        raise ConfigError("config.optimizer.rules freezes all parameters (lr 0), so there is nothing to train")
    for start, paths in sorted(groups.items()):
        if start >= total_steps:
            logging.warning(
                "config.optimizer.rules: %d parameter arrays, such as %s, would train from step %d on, but the run has "
                "only %d steps; they stay frozen",
                *(len(paths), paths[0], start, total_steps),
            )


def _make_base(spec: OptimizerSpec) -> optax.GradientTransformation:
    """Creates the base optimizer `spec.name`, without weight decay or a learning rate."""
    if spec.name in ("adamw", "adam"):
        return optax.scale_by_adam(b1=spec.b1, b2=spec.b2)
    if spec.name == "lion":
        return optax.scale_by_lion(b1=spec.b1, b2=spec.b2)
    if spec.name == "sgd":
        return optax.trace(decay=spec.b1)
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
