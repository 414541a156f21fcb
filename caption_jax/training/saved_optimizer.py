"""The checkpoint format of the optimizer state, which is independent of how optax nests states.

The layout depends only on the optimizer's name, the set of trained parameters and the steps at which their training
starts. A run can therefore resume after the learning rate of a rule has changed, or from a checkpoint written before
the optimizer became an optax chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from caption_jax.parameters.paths import flatten, unflatten
from caption_jax.parameters.rules import ParameterRule

PyTree = Any


class SavedOptimizer(NamedTuple):
    """Optimizer state in the checkpoint format.

    Attributes:
        count: number of updates made, int32 scalar.
        moments: state of the base optimizer (such as `optax.scale_by_adam`), by "from_step_<n>" for the parameters that
            start training at step n. The trees contain only these parameters, under their paths in the model.
    """

    count: Int[Array, ""]
    moments: dict[str, PyTree]


def to_saved(opt_state: PyTree) -> SavedOptimizer:
    """Converts the state of a `make_optimizer` transformation (arrays or shapes) to the checkpoint format."""
    groups: dict[str, list[PyTree]] = {}
    for rule, state in opt_state["update"].inner_states.items():
        if rule.lr > 0:
            from_step, learning_rate = state.inner_state
            groups.setdefault(_group_name(rule), []).append(from_step.inner_state[0])
            count = learning_rate.count  # the same for every rule
    return SavedOptimizer(count, {name: _map_parts(_merge, *states) for name, states in groups.items()})


def from_saved(saved: SavedOptimizer, like: PyTree) -> PyTree:
    """The inverse of `to_saved`.

    Args:
        saved: the result of `to_saved`. Its moments are not copied.
        like: state of the same optimizer, or its shapes.
    """

    def copy_count(_: Any = None) -> Int[Array, ""]:
        return jnp.copy(saved.count)  # a separate array per counter, because the train step donates them

    def restore(rule: ParameterRule, state: optax.MaskedState) -> optax.MaskedState:
        if rule.lr == 0:
            return state
        from_step, learning_rate = state.inner_state
        base_state, *other_states = from_step.inner_state
        base_state = _map_parts(_select, base_state, saved.moments[_group_name(rule)])
        from_step = from_step._replace(count=copy_count(), inner_state=(base_state, *other_states))
        return state._replace(inner_state=(from_step, learning_rate._replace(count=copy_count())))

    update = {rule: restore(rule, state) for rule, state in like["update"].inner_states.items()}
    return like | {
        "active": jax.tree.map(copy_count, like["active"]),
        "update": like["update"]._replace(inner_states=update),
    }


def _group_name(rule: ParameterRule) -> str:
    return f"from_step_{rule.from_step}"


def _map_parts(function: Callable, *states: PyTree) -> PyTree:
    """Maps over the counts and parameter trees (dictionaries) of a base optimizer's state."""
    return jax.tree.map(function, *states, is_leaf=lambda node: isinstance(node, dict))


def _merge(*parts: PyTree) -> PyTree:
    """Merges the parameter trees of several rules. Counts are equal for all rules that start at the same step."""
    if not isinstance(parts[0], dict):
        return parts[0]
    leaves = [item for part in parts for item in flatten(part).items()]
    return unflatten({path: leaf for path, leaf in leaves if not isinstance(leaf, optax.MaskedNode)})


def _select(like: PyTree, saved: PyTree) -> PyTree:
    """The inverse of `_merge` for a single rule."""
    if not isinstance(like, dict):
        return jnp.copy(saved)
    masked = {path: leaf for path, leaf in flatten(like).items() if isinstance(leaf, optax.MaskedNode)}
    leaves = flatten(saved)
    return unflatten({path: masked[path] if path in masked else leaves[path] for path in flatten(like)})
