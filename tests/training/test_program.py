"""The update as a kept program: the next start takes it up, and it is the update."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from small_run import quick_compilation

from caption_jax.parameters.sharding import put_batch
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.initial_variables import init_variables
from caption_jax.runs.workdir import read_spec
from caption_jax.training import program as module
from caption_jax.training.program import Program, make_program

FROZEN = frozenset({"decoder/embedding"})


@pytest.fixture
def traces(monkeypatch, tmp_path):
    """How often a step has been traced, with an empty folder for programs."""
    found, make = [], module.TrainStep

    def counted(*arguments, **settings):
        step = make(*arguments, **settings)

        def traced(state, batch, constants):
            found.append(None)
            return step(state, batch, constants)

        return traced

    monkeypatch.setattr(module, "TrainStep", counted)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield found
    jax.config.update("jax_compilation_cache_dir", before)


def program_on_one_device(workdir) -> Program:
    experiment = open_experiment(epath.Path(workdir), read_spec(workdir))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), experiment.mesh.axis_names)
    return make_program(experiment.description, mesh, steps=10)


def two_steps(program: Program, update) -> tuple[dict, dict]:
    """The state after two updates on drawn pixels, and the last metrics."""
    draw = np.random.default_rng(0)
    size, settings = program.description.preprocessing.size, program.description.model_settings
    batch = {
        "image": draw.integers(0, 256, (4, size, size, 3), np.uint8),
        "tokens": draw.integers(3, settings.vocabulary_size, (4, 1, settings.max_length), np.int32),
        "index": np.arange(4, dtype=np.int32),
        "mask": np.ones(4, bool),
    }
    state = program.start(init_variables(program.description))
    for _ in range(2):
        state, metrics = update(state, put_batch(batch, program.mesh), {})
    return jax.device_get((state.params, metrics))


@pytest.mark.slow
def test_another_start_takes_the_step_up_and_does_the_same(small_workdir, traces):
    with quick_compilation():
        first, again = (program_on_one_device(small_workdir) for _ in range(2))
        kept = two_steps(first, first.cached_update(FROZEN))
        assert len(traces) == 1
        taken_up = two_steps(again, again.cached_update(FROZEN))
        assert len(traces) == 1
        jax.tree.map(np.testing.assert_array_equal, taken_up, kept)
        jitted = two_steps(first, first.update(FROZEN))
        assert len(traces) == 2
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), kept, jitted)


@pytest.mark.parametrize("change", ["frozen", "steps", "config"])
def test_what_decides_the_step_decides_the_file(small_workdir, traces, monkeypatch, change):
    def make_short_step(*arguments, **settings):
        def step(state, batch, constants):
            traces.append(None)
            return state, {"rows": batch["mask"].sum()}

        return step

    monkeypatch.setattr(module, "TrainStep", make_short_step)
    program = program_on_one_device(small_workdir)
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
    other = make_program(description, program.mesh, steps)
    assert int(other.cached_update(frozen)(state, batch, {})[1]["rows"]) == 4
    assert len(traces) == 2
    other.cached_update(frozen)(state, batch, {})
    assert len(traces) == 2
