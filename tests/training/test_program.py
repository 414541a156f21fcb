"""The update is cached as a compiled program, which later runs load."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from caption_jax.parameters.sharding import put_batch
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.initial_variables import init_variables
from caption_jax.runs.workdir import read_spec
from caption_jax.training import program as program_module
from caption_jax.training.program import Program, make_program

FROZEN = frozenset({"decoder/embedding"})


@pytest.fixture
def recorded_traces(monkeypatch, tmp_path):
    """A list with an entry per traced step. The folder of cached programs is empty."""
    recorded, original_step = [], program_module.TrainStep

    def make_recording_step(*arguments, **settings):
        step = original_step(*arguments, **settings)

        def recording_step(state, batch, constants):
            recorded.append(None)
            return step(state, batch, constants)

        return recording_step

    monkeypatch.setattr(program_module, "TrainStep", make_recording_step)
    previous = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield recorded
    jax.config.update("jax_compilation_cache_dir", previous)


def make_program_on_one_device(workdir) -> Program:
    experiment = open_experiment(epath.Path(workdir), read_spec(workdir))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), experiment.mesh.axis_names)
    return make_program(experiment.description, mesh, steps=10)


def run_two_steps(program: Program, update) -> tuple[dict, dict]:
    """Returns the parameters and metrics after two updates on random images."""
    rng = np.random.default_rng(0)
    size, settings = program.description.preprocessing.size, program.description.model_settings
    batch = {
        "image": rng.integers(0, 256, (4, size, size, 3), np.uint8),
        "tokens": rng.integers(3, settings.vocabulary_size, (4, 1, settings.max_length), np.int32),
        "index": np.arange(4, dtype=np.int32),
        "mask": np.ones(4, bool),
    }
    state = program.start(init_variables(program.description))
    for _ in range(2):
        state, metrics = update(state, put_batch(batch, program.mesh), {})
    return jax.device_get((state.params, metrics))


@pytest.mark.slow
def test_a_second_run_loads_the_cached_step_with_equal_results(small_workdir, recorded_traces):
    first, second = (make_program_on_one_device(small_workdir) for _ in range(2))
    cached = run_two_steps(first, first.cached_update(FROZEN))
    assert len(recorded_traces) == 1
    loaded = run_two_steps(second, second.cached_update(FROZEN))
    assert len(recorded_traces) == 1
    jax.tree.map(np.testing.assert_array_equal, loaded, cached)
    jitted = run_two_steps(first, first.update(FROZEN))
    assert len(recorded_traces) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cached, jitted)


@pytest.mark.parametrize("change", ["frozen", "steps", "config"])
def test_the_cache_key_depends_on_frozen_parameters_steps_and_config(
    small_workdir, recorded_traces, monkeypatch, change
):
    def make_trivial_step(*arguments, **settings):
        def step(state, batch, constants):
            recorded_traces.append(None)
            return state, {"rows": batch["mask"].sum()}

        return step

    monkeypatch.setattr(program_module, "TrainStep", make_trivial_step)
    program = make_program_on_one_device(small_workdir)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.abstract_state)
    batch = put_batch({"mask": np.ones(4, bool)}, program.mesh)
    program.cached_update(FROZEN)(state, batch, {})
    frozen, steps, description = FROZEN, 10, program.description
    if change == "frozen":
        frozen = frozenset()
    elif change == "steps":
        steps = 11
    else:
        objective = dataclasses.replace(description.spec.objective, label_smoothing=0.2)
        description = dataclasses.replace(description, spec=dataclasses.replace(description.spec, objective=objective))
    changed = make_program(description, program.mesh, steps)
    assert int(changed.cached_update(frozen)(state, batch, {})[1]["rows"]) == 4
    assert len(recorded_traces) == 2
    changed.cached_update(frozen)(state, batch, {})
    assert len(recorded_traces) == 2
