"""The optimizer state is restored from checkpoints, including checkpoints from earlier releases."""

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
    """The optimizer state as stored in checkpoints since the first release."""

    count: Any
    moments: dict[str, Any]


def make_variables() -> dict:
    rng = np.random.default_rng(0)

    def sample(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    encoder = {"stem": {"kernel": sample(3, 4)}, "head": {"kernel": sample(130, 140), "bias": sample(5)}}
    return {"params": {"encoder": encoder, "decoder": {"out": {"kernel": sample(5, 6)}, "embedding": sample(7, 6)}}}


def make_gradients(step: int) -> dict:
    keys = iter(jax.random.split(jax.random.key(step), 10))
    return jax.tree.map(lambda value: jax.random.normal(next(keys), value.shape), make_variables()["params"])


class Run:
    """A training run with random gradients."""

    def __init__(self, **settings: Any):
        spec = OptimizerSpec(**{"warmup_steps": 4, "rules": RULES, "clip_norm": 0.0, **settings})
        self.optimizer, _ = make_optimizer(spec, make_variables()["params"], 20)
        self.update = jax.jit(self._update, donate_argnums=0)

    def _update(self, state: TrainState, gradients: dict) -> TrainState:
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    def start(self) -> TrainState:
        return create_state(make_variables(), self.optimizer, averaged=False)

    def train(self, state: TrainState, steps: int) -> TrainState:
        for _ in range(steps):
            state = self.update(state, make_gradients(int(state.step)))
        return state


def resume(run: Run, workdir: Path) -> TrainState:
    shapes = jax.tree.map(
        lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=value.sharding), run.start()
    )
    checkpoints = Checkpoints(workdir)
    try:
        restored = checkpoints.restore(shapes.weights(), shapes.resume_only())
    finally:
        checkpoints.close()
    return shapes.from_checkpoint(restored.weights, restored.train)


def save_checkpoint(workdir: Path, state: TrainState, train: dict) -> None:
    checkpoints = Checkpoints(workdir)
    checkpoints.save(int(state.step), state.weights(), train, {})
    checkpoints.close()


@pytest.mark.parametrize(("name", "steps"), [("adamw", 2), *((name, 5) for name in OPTIMIZERS)])
def test_resuming_from_a_checkpoint_is_bit_exact(tmp_path, name, steps):
    run = Run(name=name)
    state = run.train(run.start(), steps)
    save_checkpoint(tmp_path, state, state.resume_only())
    jax.tree.map(
        np.testing.assert_array_equal, run.train(resume(run, tmp_path), 8 - steps), run.train(state, 8 - steps)
    )


def test_a_checkpoint_of_the_first_release_can_be_resumed(tmp_path):
    """The stored state is a step count and, per starting step, the Adam state of parameters trained from that step."""
    run, steps = Run(), 5
    state = run.train(run.start(), steps)
    adam, moments = optax.scale_by_adam(b1=0.9, b2=0.98), {}

    def select_decoder(tree: dict) -> dict:
        return {"decoder": tree["decoder"]}

    def select_head(tree: dict) -> dict:
        return {"encoder": {"head": tree["encoder"]["head"]}}

    for start, select in ((0, select_decoder), (3, select_head)):
        moments[f"from_step_{start}"] = adam.init(select(make_variables()["params"]))
        for step in range(start, steps):
            _, moments[f"from_step_{start}"] = adam.update(select(make_gradients(step)), moments[f"from_step_{start}"])
    saved = OptimizerState(jnp.asarray(steps, jnp.int32), moments)
    save_checkpoint(tmp_path, state, {"step": state.step, "opt_state": saved})
    actual = run.train(resume(run, tmp_path), 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), actual, run.train(state, 4))


def test_the_multipliers_of_rules_may_change_on_resume(tmp_path):
    run = Run()
    state = run.train(run.start(), 5)
    save_checkpoint(tmp_path, state, state.resume_only())
    slower = Run(rules=(*RULES[:3], (r"decoder/.*", {"lr": 0.5, "decay": 2.0})), weight_decay=0.0)
    before = jax.device_get(state.params)
    updates, slower_updates = (
        jax.tree.map(jnp.subtract, new_run.train(resume(new_run, tmp_path), 1).params["decoder"], before["decoder"])
        for new_run in (Run(weight_decay=0.0), slower)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.5 * a, b, atol=1e-6), updates, slower_updates)


def test_checkpoints_have_no_moments_of_frozen_parameters():
    state = Run().start()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.resume_only())]
    assert any("head" in path for path in paths) and not any("stem" in path for path in paths)
