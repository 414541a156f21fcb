"""The jitted updates and state shardings of a run, which are independent of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import optax

from caption_jax.objectives.objective import Objective
from caption_jax.objectives.total_objective import make_objectives
from caption_jax.parameters.freezing import frozen_norms
from caption_jax.parameters.sharding import batch_sharding, parameter_shardings, replicated, shardings_like
from caption_jax.runs.description import RunDescription
from caption_jax.runs.initial_variables import variable_shapes
from caption_jax.runtime.cached_program import CachedUpdate
from caption_jax.runtime.extension_sources import source_hash
from caption_jax.specs import as_mapping
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import TrainState, create_state
from caption_jax.training.step import TrainStep

PyTree = Any


@dataclass(frozen=True)
class Program:
    """The state layout and updates of a run, on a mesh that may be abstract (for planning without the hardware).

    Attributes:
        description: description of the model, its preprocessing and its vocabulary.
        mesh: concrete or abstract device mesh.
        steps: number of updates of the whole run, for the learning-rate schedule.
        optimizer: gradient transformation for all parameters.
        schedule: learning rate by step.
        abstract_state: shapes, dtypes and shardings of the train state. The arrays themselves are in `Run.state`.
        constants: constants of the objectives, by label, on the devices.
    """

    description: RunDescription
    mesh: jax.sharding.Mesh
    steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    abstract_state: TrainState
    constants: Mapping[str, PyTree] = field(default_factory=dict)

    @property
    def shardings(self) -> PyTree:
        """Shardings of the train state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    @property
    def objectives(self) -> dict[str, Objective]:
        """Objectives by label."""
        return make_objectives(self.description.spec.objective, joint_embedding=self.description.has_joint_embedding)

    def with_constants(self, constants: Mapping[str, PyTree]) -> Program:
        """Returns a copy of the program with constants of its objectives, which are replicated on every device."""
        return replace(self, constants=jax.device_put(constants, replicated(self.mesh)))

    def start(self, variables: PyTree) -> TrainState:
        """Creates the initial train state on the devices."""
        averaged = self.description.spec.optimizer.ema > 0
        # Jitted as one program, because creating hundreds of small arrays separately takes milliseconds each.
        create = jax.jit(lambda variables: create_state(variables, self.optimizer, averaged))
        return jax.device_put(create(variables), self.shardings)

    def update(self, frozen: frozenset[str]) -> Callable:
        """Returns the jitted `TrainStep` that freezes the parameters at the paths `frozen`."""
        return jax.jit(
            self.uncompiled_step(frozen),
            donate_argnums=0,
            in_shardings=(self.shardings, *self._input_shardings),
            out_shardings=(self.shardings, replicated(self.mesh)),
        )

    def cached_update(self, frozen: frozenset[str]) -> Callable:
        """Like `update`, but with a disk cache of the traced program on a single CPU device, to restart faster."""
        if self.mesh.size > 1 or self.mesh.devices.flat[0].platform != "cpu":  # the cache is not tested for these
            return self.update(frozen)
        spec = self.description.spec
        cache_key = {
            **self.description.cache_key(),
            "spec": as_mapping(spec),
            "steps": self.steps,
            "frozen": sorted(frozen),
            "extensions": [source_hash(type(objective)) for objective in spec.objective.terms.values()],
        }
        return CachedUpdate(
            self.uncompiled_step(frozen),
            "train_step",
            cache_key,
            state=self.shardings,
            inputs=self._input_shardings,
            outputs=replicated(self.mesh),
        )

    @property
    def _input_shardings(self) -> tuple[jax.sharding.Sharding, jax.sharding.Sharding]:
        """Shardings of the batch and of the objectives' constants."""
        return batch_sharding(self.mesh), replicated(self.mesh)

    def uncompiled_step(self, frozen: frozenset[str]) -> TrainStep:
        """Returns the training step before jitting."""
        description = self.description
        return TrainStep(
            description.model(frozen_norms(frozen)),
            self.optimizer,
            description.preprocessing,
            description.spec,
            frozen,
            self.objectives,
            text_ids=description.text_ids,
            mesh=self.mesh,
        )


def make_program(description: RunDescription, mesh: jax.sharding.Mesh, steps: int) -> Program:
    """Builds the program of a run.

    Args:
        description: description of the model, its preprocessing and its vocabulary.
        mesh: concrete or abstract device mesh.
        steps: number of updates of the whole run.

    Raises:
        ValueError: the optimizer or mesh rules of the config do not match the model's parameters.
    """
    spec, variables = description.spec, variable_shapes(description)
    optimizer, schedule = make_optimizer(spec.optimizer, variables["params"], steps)
    shapes = jax.eval_shape(lambda tree: create_state(tree, optimizer, averaged=spec.optimizer.ema > 0), variables)
    shardings = parameter_shardings(shapes.params, spec.mesh.rules, mesh)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings_like(shapes, shapes.params, shardings, mesh),
    )
    return Program(description, mesh, steps, optimizer, jax.jit(schedule), abstract_state)
