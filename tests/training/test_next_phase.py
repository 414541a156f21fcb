"""The training step of the next phase is compiled in the background, and its first call compiles nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caption_jax.parameters.sharding import batch_sharding, make_mesh, replicated
from caption_jax.runtime.cached_program import CachedUpdate
from caption_jax.specs import MeshSpec
from caption_jax.training.next_phase import NextPhaseCompiler

COMPILATION = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations() -> list[str]:
    """Names of the functions that JAX has compiled since the start of the test."""
    names: list[str] = []

    def record(event: str, duration: float, **details: str) -> None:
        if event == COMPILATION:
            names.append(details.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(record)
    yield names
    jax.monitoring.unregister_event_duration_listener(record)


def make_update(kind: str, mesh: jax.sharding.Mesh, factor: float):
    """Returns a function `(state, batch, constants) -> (state, metrics)`, jitted or as a `CachedUpdate`."""
    state, inputs = {"weight": replicated(mesh)}, (batch_sharding(mesh), replicated(mesh))

    def update(state, batch, constants):
        return {"weight": state["weight"] + factor * batch["x"].sum()}, {"loss": batch["x"].mean() + constants["c"]}

    if kind == "cached":
        return CachedUpdate(update, "step", {"factor": factor}, state=state, inputs=inputs, outputs=replicated(mesh))
    shardings = {"in_shardings": (state, *inputs), "out_shardings": (state, replicated(mesh))}
    return jax.jit(update, donate_argnums=0, **shardings)


@pytest.mark.parametrize(("kind", "devices"), [("jitted", 8), ("jitted", 1), ("cached", 1)])
def test_the_first_call_of_the_next_phase_compiles_nothing(kind, devices, compilations, eight_devices):
    mesh = make_mesh(MeshSpec(data=devices), jax.devices()[:devices])
    first, second = (make_update(kind, mesh, factor) for factor in (1.0, 2.0))
    state = jax.device_put({"weight": np.float32(0)}, replicated(mesh))
    batch = jax.device_put({"x": np.ones(8, np.float32)}, batch_sharding(mesh))
    constants = jax.device_put({"c": jnp.float32(1)}, replicated(mesh))
    state, _ = first(state, batch, constants)
    compiler = NextPhaseCompiler()
    compiler.start(second, state, batch, constants)
    compiler.wait()
    assert compilations
    compilations.clear()
    state, metrics = second(state, batch, constants)
    assert compilations == []
    compiler.close()
    assert (float(state["weight"]), float(metrics["loss"])) == (24.0, 2.0)


def test_an_error_of_the_compilation_is_raised_when_the_next_phase_starts():
    @jax.jit
    def fails(x):
        raise ValueError("cannot be traced")

    compiler = NextPhaseCompiler()
    compiler.start(fails, jnp.ones(3))
    with pytest.raises(ValueError, match="cannot be traced"):
        compiler.wait()
    compiler.wait()
    compiler.close()
