"""The update as a cached program: the next start loads it, and its results are equal."""

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
    """Records each tracing of a step, with an empty folder of cached programs."""
    recorded, make = [], module.TrainStep

    def counted(*arguments, **settings):
        step = make(*arguments, **settings)

        def traced(state, batch, constants):
            recorded.append(None)
            return step(state, batch, constants)

        return traced

    monkeypatch.setattr(module, "TrainStep", counted)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield recorded
    jax.config.update("jax_compilation_cache_dir", before)


def program_on_one_device(workdir) -> Program:
    experiment = open_experiment(epath.Path(workdir), read_spec(workdir))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), experiment.mesh.axis_names)
    return make_program(experiment.description, mesh, steps=10)


def two_steps(program: Program, update) -> tuple[dict, dict]:
    """Returns the parameters after two updates on random pixels, and the last metrics."""
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
def test_a_second_start_loads_the_step_and_gives_equal_results(small_workdir, traces):
    with quick_compilation():
        first, second = (program_on_one_device(small_workdir) for _ in range(2))
        cached = two_steps(first, first.cached_update(FROZEN))
        assert len(traces) == 1
        loaded = two_steps(second, second.cached_update(FROZEN))
        assert len(traces) == 1
        jax.tree.map(np.testing.assert_array_equal, loaded, cached)
        jitted = two_steps(first, first.update(FROZEN))
        assert len(traces) == 2
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cached, jitted)


@pytest.mark.parametrize("change", ["frozen", "steps", "config"])
def test_the_cache_key_covers_everything_that_changes_the_step(small_workdir, traces, monkeypatch, change):
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
    changed = make_program(description, program.mesh, steps)
    assert int(changed.cached_update(frozen)(state, batch, {})[1]["rows"]) == 4
    assert len(traces) == 2
    changed.cached_update(frozen)(state, batch, {})
    assert len(traces) == 2
