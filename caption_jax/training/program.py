"""What a run computes, apart from its data: where the state lies on the devices, and the jitted updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import optax

from caption_jax.objectives.objective import Objective
from caption_jax.objectives.total_objective import objectives_of
from caption_jax.parameters.freezing import frozen_norms
from caption_jax.parameters.sharding import batch_sharding, parameter_shardings, replicated, shardings_like
from caption_jax.runs.description import RunDescription
from caption_jax.runs.experiment import variable_shapes
from caption_jax.runtime.cached_program import KeptProgram, source_of
from caption_jax.specs import as_mapping
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import TrainState, create_state
from caption_jax.training.step import Batch, Metrics, TrainStep

PyTree = Any


@dataclass(frozen=True)
class Program:
    """A run's state and updates, on a mesh of devices that need not be there.

    Attributes:
        description: model, pixels and words.
        mesh: of the devices.
        steps: of the whole run.
        optimizer: of all parameters.
        schedule: learning rate by step.
        state: shapes, types and places of the state's arrays; no arrays, which are `Run.state`.
        constants: of the objectives, by label, on the devices.
    """

    description: RunDescription
    mesh: jax.sharding.Mesh
    steps: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    state: TrainState
    constants: Mapping[str, PyTree] = field(default_factory=dict)

    @property
    def shardings(self) -> PyTree:
        """Where the arrays of the state lie."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    @property
    def objectives(self) -> dict[str, Objective]:
        """The terms of the loss, by label."""
        return objectives_of(self.description.spec.objective, joint_embedding=self.description.has_shared_space)

    def with_constants(self, constants: Mapping[str, PyTree]) -> Program:
        """The program with constants of its objectives, which every device gets in full."""
        return replace(self, constants=jax.device_put(constants, replicated(self.mesh)))

    def start(self, variables: PyTree) -> TrainState:
        """The state before the first step, on the devices."""
        averaged = self.description.spec.optimizer.ema > 0
        # As one program: by itself each of hundreds of small arrays would take milliseconds.
        create = jax.jit(lambda variables: create_state(variables, self.optimizer, averaged))
        return jax.device_put(create(variables), self.shardings)

    def update(self, frozen: frozenset[str]) -> Callable:
        """The jitted `TrainStep` under which the parameters at the paths `frozen` stay as they are.

        It takes the state, a batch and `constants`.
        """
        return jax.jit(
            self.train_step(frozen),
            donate_argnums=0,
            in_shardings=(self.shardings, batch_sharding(self.mesh), replicated(self.mesh)),
            out_shardings=(self.shardings, replicated(self.mesh)),
        )

    def kept_update(self, frozen: frozenset[str]) -> Callable:
        """`update`, on one CPU as a `KeptProgram`, which the next start does not trace again; untried elsewhere."""
        if self.mesh.size > 1 or self.mesh.devices.flat[0].platform != "cpu":
            return self.update(frozen)
        step, (shardings, structure) = self.train_step(frozen), jax.tree.flatten(self.shardings)

        def flat_step(leaves: list[jax.Array], batch: Batch, constants: PyTree) -> tuple[list[jax.Array], Metrics]:
            state, metrics = step(structure.unflatten(leaves), batch, constants)
            return jax.tree.leaves(state), metrics

        kept = KeptProgram(
            flat_step,
            "train_step",
            {
                **self.description.about(),
                "spec": as_mapping(self.description.spec),
                "steps": self.steps,
                "frozen": sorted(frozen),
                "state": str(structure),
                "extensions": [source_of(type(term)) for term in self.description.spec.objective.terms.values()],
            },
            donate_argnums=0,
            in_shardings=(shardings, batch_sharding(self.mesh), replicated(self.mesh)),
            out_shardings=(shardings, replicated(self.mesh)),
        )

        def update(state: TrainState, batch: Batch, constants: PyTree) -> tuple[TrainState, Metrics]:
            leaves, metrics = kept(jax.tree.leaves(state), batch, constants)
            return structure.unflatten(leaves), metrics

        return update

    def train_step(self, frozen: frozenset[str]) -> TrainStep:
        """The step before it is jitted."""
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
    """Builds the program of a run of so many steps.

    Raises:
        ValueError: the config's rules for the optimizer or the mesh do not fit the model's parameters.
    """
    spec, variables = description.spec, variable_shapes(description)
    optimizer, schedule = make_optimizer(spec.optimizer, variables["params"], steps)
    shapes = jax.eval_shape(lambda tree: create_state(tree, optimizer, averaged=spec.optimizer.ema > 0), variables)
    owners = parameter_shardings(shapes.params, spec.mesh.rules, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings_like(shapes, shapes.params, owners, mesh),
    )
    return Program(description, mesh, steps, optimizer, jax.jit(schedule), state)
