"""A run resumes from the optimizer state of its checkpoints, including those of earlier releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from caption_jax.runs.checkpoints import Checkpoints
from caption_jax.specs import OptimizerSpec
from caption_jax.specs.learning_spec import OPTIMIZERS
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import TrainState, create_state

RULES = (
    (r"encoder/stem/.*", {"lr": 0}),
    (r"encoder/head/kernel", {"lr": 0.1, "from_step": 3}),
    (r"encoder/head/bias", {"from_step": 3}),
    (r"decoder/out/.*", {"decay": 0.5}),
    (r"decoder/embedding", {}),
)


class OptimizerState(NamedTuple):
    """The optimizer state in checkpoints since the first release."""

    count: Any
    moments: dict[str, Any]


def variables() -> dict:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32)

    encoder = {"stem": {"kernel": draw(3, 4)}, "head": {"kernel": draw(130, 140), "bias": draw(5)}}
    return {"params": {"encoder": encoder, "decoder": {"out": {"kernel": draw(5, 6)}, "embedding": draw(7, 6)}}}


def gradients(step: int) -> dict:
    keys = iter(jax.random.split(jax.random.key(step), 10))
    return jax.tree.map(lambda value: jax.random.normal(next(keys), value.shape), variables()["params"])


class Run:
    """Updates with random gradients."""

    def __init__(self, **settings: Any):
        spec = OptimizerSpec(**{"warmup_steps": 4, "rules": RULES, "clip_norm": 0.0, **settings})
        self.optimizer, _ = make_optimizer(spec, variables()["params"], 20)
        self.update = jax.jit(self._update, donate_argnums=0)

    def _update(self, state: TrainState, gradients: dict) -> TrainState:
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    def start(self) -> TrainState:
        return create_state(variables(), self.optimizer, averaged=False)

    def train(self, state: TrainState, steps: int) -> TrainState:
        for _ in range(steps):
            state = self.update(state, gradients(int(state.step)))
        return state


def resumed(run: Run, workdir: Path) -> TrainState:
    shapes = jax.tree.map(
        lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding), run.start()
    )
    checkpoints = Checkpoints(workdir)
    try:
        restored = checkpoints.restore(shapes.weights(), shapes.resume_only())
    finally:
        checkpoints.close()
    return shapes.from_checkpoint(restored.weights, restored.train)


def save(workdir: Path, state: TrainState, train: dict) -> None:
    checkpoints = Checkpoints(workdir)
    checkpoints.save(int(state.step), state.weights(), train, {})
    checkpoints.close()


@pytest.mark.parametrize(("name", "steps"), [("adamw", 2), *((name, 5) for name in OPTIMIZERS)])
def test_a_checkpoint_resumes_bit_for_bit(tmp_path, name, steps):
    run = Run(name=name)
    state = run.train(run.start(), steps)
    save(tmp_path, state, state.resume_only())
    jax.tree.map(
        np.testing.assert_array_equal, run.train(resumed(run, tmp_path), 8 - steps), run.train(state, 8 - steps)
    )


def test_a_checkpoint_of_the_first_release_resumes(tmp_path):
    """Its moments are the Adam states of all parameters that start at a step, by path, and one count for the others."""
    run, steps = Run(), 5
    state = run.train(run.start(), steps)
    adam, moments = optax.scale_by_adam(b1=0.9, b2=0.98), {}

    def early(tree: dict) -> dict:
        return {"decoder": tree["decoder"]}

    def late(tree: dict) -> dict:
        return {"encoder": {"head": tree["encoder"]["head"]}}

    for start, part in ((0, early), (3, late)):
        moments[f"from_step_{start}"] = adam.init(part(variables()["params"]))
        for step in range(start, steps):
            _, moments[f"from_step_{start}"] = adam.update(part(gradients(step)), moments[f"from_step_{start}"])
    saved = OptimizerState(jnp.asarray(steps, jnp.int32), moments)
    save(tmp_path, state, {"step": state.step, "opt_state": saved})
    ours = run.train(resumed(run, tmp_path), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, run.train(state, 4))


def test_a_run_resumes_with_other_multiples(tmp_path):
    run = Run()
    state = run.train(run.start(), 5)
    save(tmp_path, state, state.resume_only())
    slower = Run(rules=(*RULES[:3], (r"decoder/.*", {"lr": 0.5, "decay": 2.0})), weight_decay=0.0)
    before = jax.device_get(state.params)
    moved, moved_slower = (
        jax.tree.map(jnp.subtract, r.train(resumed(r, tmp_path), 1).params["decoder"], before["decoder"])
        for r in (Run(weight_decay=0.0), slower)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.5 * a, b, atol=1e-6), moved, moved_slower)


def test_checkpoints_have_no_moments_of_frozen_parameters():
    state = Run().start()
    held = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.resume_only())]
    assert any("head" in path for path in held) and not any("stem" in path for path in held)
