"""Steps that are not finite stop the run or are skipped, and spikes of the loss are reported with their images."""

from __future__ import annotations

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.specs import OptimizerSpec, TrainSpec
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.skipped_steps import SKIPPED, skip_if_not_finite
from caption_jax.training.state import TrainState, create_state
from caption_jax.training.step_faults import StepFaults
from input_pipeline.records import Record, Split

SPLIT = Split("train", [Record(lambda: b"", ("text",), f"{index}.jpg") for index in range(100)])
SKIP = TrainSpec(non_finite="skip", max_skipped_steps=2)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: messages.append(text % values))
    return messages


def check(faults: StepFaults, step: int, loss: float = 1.0, gradient: float = 1.0, skipped: bool = False) -> None:
    values = {"loss": loss, "gradient_norm": gradient, "parameter_norm": 1.0, SKIPPED: float(skipped)}
    faults.check(step, values, lambda: [step, step + 1, -1])


@pytest.mark.parametrize("values", [{"loss": math.nan}, {"gradient": math.inf}])
def test_a_step_that_is_not_finite_stops_the_run(values):
    faults = StepFaults(TrainSpec(), SPLIT)
    check(faults, 1)
    with pytest.raises(NonFiniteLossError, match=r"There is no checkpoint yet.*\['2.jpg', '3.jpg'\].*non_finite"):
        check(faults, 2, **values)
    with pytest.raises(NonFiniteLossError, match="The last checkpoint, of step 40, precedes it"):
        check(StepFaults(TrainSpec(), SPLIT, lambda: 40), 2, **values)


def test_skipped_steps_are_counted_and_too_many_in_a_row_stop_the_run(warnings):
    faults = StepFaults(SKIP, SPLIT)
    for step, skipped in enumerate([False, True, True, False, True]):
        check(faults, step, math.nan if skipped else 1.0, skipped=skipped)
    assert faults.summarise({SKIPPED: 1.0}) == {SKIPPED: 4}  # this step, too
    assert warnings[1].startswith("step 2 skipped (2 so far, 2 in a row): loss is nan, gradient norm is 1.0")
    resumed = StepFaults(SKIP, SPLIT)
    resumed.load(faults.dump())
    for state in (faults, resumed):
        check(state, 5, math.nan, skipped=True)
        with pytest.raises(NonFiniteLossError, match=r"step 6: loss is nan.* as in the 2 steps before it"):
            check(state, 6, math.nan, skipped=True)


def test_a_loss_spike_is_reported_with_its_images(warnings):
    faults, rng = StepFaults(TrainSpec(), SPLIT), random.Random(0)
    for step in range(60):
        check(faults, step, loss=3 + rng.gauss(0, 0.2) - step / 60)
    assert warnings == []
    resumed = StepFaults(TrainSpec(), SPLIT)
    resumed.load(faults.dump())
    for state in (faults, resumed):
        check(state, 60, loss=9.0)
    (first, second) = warnings
    assert first == second
    assert first.startswith("loss spike at step 60: the loss is 9, and the median of the last 60 steps 2.")
    assert first.endswith("Images of the step: ['60.jpg', '61.jpg']")


def test_many_spikes_are_counted(warnings):
    faults = StepFaults(TrainSpec(), SPLIT)
    for step in range(50):
        check(faults, step)
    for step in range(50, 60):
        check(faults, step, loss=100.0)
    assert faults.summarise({"loss": 1.0}) == {}
    assert len(warnings) == 4 and warnings[-1] == "7 more loss spikes since the last log point"


def make_state(steps: int) -> tuple[TrainState, optax.GradientTransformation, dict[str, jax.Array]]:
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    spec = OptimizerSpec(warmup_steps=2, rules=(("a/.*", {"from_step": 2}), ("b/.*", {"lr": 1.0})))
    optimizer, _ = make_optimizer(spec, params, steps)
    return create_state({"params": params, "batch_stats": {}}, optimizer, averaged=True), optimizer, params


def test_a_skipped_step_changes_only_the_counts_of_steps():
    state, optimizer, params = make_state(steps=10)

    def update(state: TrainState, gradient: float) -> TrainState:
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, gradient), params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        new = state.replace(step=state.step + 1, params=new_params, opt_state=opt_state, ema=new_params)
        norms = {"gradient_norm": optax.tree.norm(gradients), "parameter_norm": optax.tree.norm(new_params)}
        return skip_if_not_finite(state, new, {"loss": jnp.float32(1), **norms})

    for gradient in (0.1, math.nan, math.inf, 0.2):
        before = state
        state, metrics = update(state, gradient)
        assert metrics[SKIPPED] == (not math.isfinite(gradient))
        assert state.step == before.step + 1
        is_same = [
            np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (before.params, state.params)), strict=True)
        ]
        assert all(is_same) == (not math.isfinite(gradient))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    moments = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
    counts = sorted(int(node.count) for node in moments if isinstance(node, optax.ScaleByAdamState))
    # "b" was updated in the first and last step, and "a", which is unfrozen at the third step, only in the last one.
    assert counts == [1, 2]
    all_counts = [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
    assert sorted(all_counts)[:3] == [1, 2, 4]  # the counts of steps include skipped ones
