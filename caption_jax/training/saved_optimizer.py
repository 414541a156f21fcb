"""The optimizer's state as checkpoints hold it: ordered by what it is, not by the transformations that compute it.

The layout depends on the method, on which parameters train and on the steps they start at; neither on the multiples of
the rules nor on how optax nests its states. So a run resumes with another learning rate of a rule, and so does one that
was stopped before its optimizer was an optax chain.
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
    """State of the optimizer in a checkpoint.

    Attributes:
        count: updates made, int32 scalar.
        moments: the method's optax state for all parameters that start to train at the same step, by
            "from_step_<n>". Its trees hold these parameters only, under the same paths as in the model.
    """

    count: Int[Array, ""]
    moments: dict[str, PyTree]


def to_saved(opt_state: PyTree) -> SavedOptimizer:
    """Returns the state of a `make_optimizer` transformation, of arrays or their shapes, as checkpoints hold it."""
    groups: dict[str, list[PyTree]] = {}
    for rule, state in opt_state["update"].inner_states.items():
        if rule.lr > 0:
            from_step, rate = state.inner_state
            groups.setdefault(_group(rule), []).append(from_step.inner_state[0])
            count = rate.count  # the same for every rule
    return SavedOptimizer(count, {name: _map_parts(_merge, *states) for name, states in groups.items()})


def from_saved(saved: SavedOptimizer, like: PyTree) -> PyTree:
    """The inverse of `to_saved`.

    Args:
        saved: what `to_saved` returned. Its moments are used, not copied.
        like: a state of the same optimizer, or its shapes.
    """

    def count(_: Any = None) -> Int[Array, ""]:
        return jnp.copy(saved.count)  # an array of its own for each counter: a step donates all of them

    def restored(rule: ParameterRule, state: optax.MaskedState) -> optax.MaskedState:
        if rule.lr == 0:
            return state
        from_step, rate = state.inner_state
        moments, *rest = from_step.inner_state
        moments = _map_parts(_select, moments, saved.moments[_group(rule)])
        from_step = from_step._replace(count=count(), inner_state=(moments, *rest))
        return state._replace(inner_state=(from_step, rate._replace(count=count())))

    update = {rule: restored(rule, state) for rule, state in like["update"].inner_states.items()}
    return like | {
        "active": jax.tree.map(count, like["active"]),
        "update": like["update"]._replace(inner_states=update),
    }


def _group(rule: ParameterRule) -> str:
    return f"from_step_{rule.from_step}"


def _map_parts(function: Callable, *states: PyTree) -> PyTree:
    """Maps over the parts of a method's state: its counts, and its trees of parameters, which are dictionaries."""
    return jax.tree.map(function, *states, is_leaf=lambda node: isinstance(node, dict))


def _merge(*parts: PyTree) -> PyTree:
    """One tree of the parameters of several rules; one count, as rules that start at the same step count alike."""
    if not isinstance(parts[0], dict):
        return parts[0]
    leaves = [item for part in parts for item in flatten(part).items()]
    return unflatten({path: leaf for path, leaf in leaves if not isinstance(leaf, optax.MaskedNode)})


def _select(like: PyTree, saved: PyTree) -> PyTree:
    """The inverse of `_merge`, for one rule."""
    if not isinstance(like, dict):
        return jnp.copy(saved)
    masked = {path: leaf for path, leaf in flatten(like).items() if isinstance(leaf, optax.MaskedNode)}
    leaves = flatten(saved)
    return unflatten({path: masked[path] if path in masked else leaves[path] for path in flatten(like)})
