"""Complete checkpoints are restored bit for bit on any number of devices. Incomplete ones are skipped."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from caption_jax.parameters.sharding import make_mesh, parameter_shardings, shardings_like
from caption_jax.runs.checkpoints import Checkpoints, has_checkpoint, read_weights
from caption_jax.specs import OptimizerSpec
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.saved_optimizer import to_saved
from caption_jax.training.state import TrainState, create_state

RECORDS = {"iterator": {"images": 96, "seed": 0}, "progress": {"best": 0.25, "best_step": 10}, "clock": {}}


def make_state(step: int, width: int = 8, averaged: bool = True) -> TrainState:
    """Returns a state whose values encode the step."""
    rng = np.random.default_rng(step)
    params = {
        "decoder": {"embedding": {"embedding": rng.normal(size=(16, width))}, "norm": {"scale": np.ones(width)}},
        "image_encoder": {"kernel": rng.normal(size=(3, 3, 4, width))},
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    variables = {"params": params, "batch_stats": {"image_encoder": {"mean": jnp.full(width, step, jnp.float32)}}}
    optimizer, _ = make_optimizer(OptimizerSpec(warmup_steps=10), params, 100)
    state = create_state(variables, optimizer, averaged)

    def add_step(a):
        return a + jnp.asarray(step / 8 if jnp.issubdtype(a.dtype, jnp.floating) else step, a.dtype)

    opt_state, ema = jax.tree.map(add_step, (state.opt_state, state.ema))
    return state.replace(step=jnp.asarray(step, jnp.int32), opt_state=opt_state, ema=ema)


def make_template(state: TrainState, shardings=None) -> TrainState:
    shardings = shardings or jax.tree.map(lambda a: a.sharding, state)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)


def save(checkpoints: Checkpoints, state: TrainState, records: dict = RECORDS) -> None:
    checkpoints.save(int(state.step), state.weights(), state.resume_only(), records)


def restore(workdir: Path, target: TrainState) -> tuple[TrainState, dict] | None:
    checkpoints = Checkpoints(workdir)
    try:
        restored = checkpoints.restore(target.weights(), target.resume_only())
    finally:
        checkpoints.close()
    return restored and (target.from_checkpoint(restored.weights, restored.train), restored.records)


def save_states(workdir: Path, *states: TrainState) -> Path:
    checkpoints = Checkpoints(workdir)
    for state in states:
        save(checkpoints, state)
    checkpoints.close()
    return workdir


def assert_equal_trees(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def make_device_mesh(data: int, model: int = 1) -> jax.sharding.Mesh:
    return make_mesh(ConfigDict({"data": data, "model": model}), jax.devices()[: data * model])


def get_shardings(state: TrainState, mesh: jax.sharding.Mesh, rules=()):
    return shardings_like(state, state.params, parameter_shardings(state.params, rules, mesh), mesh)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_state_is_restored_bit_for_bit(tmp_path, averaged):
    assert not has_checkpoint(tmp_path)
    assert restore(tmp_path, make_template(make_state(1, averaged=averaged))) is None
    state = make_state(24, averaged=averaged)
    save_states(tmp_path, make_state(12, averaged=averaged), state)
    assert has_checkpoint(tmp_path)
    restored, records = restore(tmp_path, make_template(make_state(1, averaged=averaged)))
    assert_equal_trees(restored, state)
    assert records == RECORDS


def test_later_updates_do_not_change_a_saved_checkpoint(tmp_path):
    checkpoints, state = Checkpoints(tmp_path), make_state(5)
    expected, records = jax.tree.map(np.array, state), json.loads(json.dumps(RECORDS))
    update = jax.jit(lambda s: jax.tree.map(lambda a: a + jnp.ones((), a.dtype), s), donate_argnums=0)
    save(checkpoints, state, records)
    for _ in range(3):
        state = update(state)
        records["progress"]["best"] = 0.99
    checkpoints.close()
    restored, stored = restore(tmp_path, make_template(make_state(1)))
    assert_equal_trees(restored, expected)
    assert stored == RECORDS


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    save_states(tmp_path, *(make_state(step) for step in (1, 2, 3, 4)))
    steps = sorted(int(folder.name) for folder in (tmp_path / "checkpoints" / "last").iterdir())
    assert steps == [3, 4]
    assert read_weights(tmp_path, "last").step == 4


def test_the_best_weights_are_read_by_default(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        state = make_state(step)
        if step < 30:
            checkpoints.save_best(step, state.weights(), {"CIDEr-D": step / 100})
        save(checkpoints, state)
    checkpoints.close()
    best, last = read_weights(tmp_path), read_weights(tmp_path, "last")
    assert (best.step, last.step) == (20, 30)
    assert_equal_trees(best.variables, make_state(20).weights())
    assert_equal_trees(last.variables, make_state(30).weights())


def test_the_last_weights_are_read_if_there_are_no_best_weights(tmp_path):
    assert read_weights(save_states(tmp_path, make_state(7))).step == 7


def test_a_kill_between_the_best_weights_and_their_state_discards_both(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save_best(step, make_state(step).weights(), {"CIDEr-D": step / 100})
        save(checkpoints, make_state(step))
    checkpoints.save_best(30, make_state(30).weights(), {"CIDEr-D": 0.3})
    checkpoints.close()
    assert read_weights(tmp_path).step == 30
    restored, _ = restore(tmp_path, make_template(make_state(1)))
    assert int(restored.step) == 20
    best = read_weights(tmp_path)
    assert best.step == 20
    assert_equal_trees(best.variables, make_state(20).weights())


def test_best_weights_that_were_not_complete_when_the_run_was_killed_are_restored_from_the_last_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save_best(step, make_state(step).weights(), {"CIDEr-D": step / 100})
        save(checkpoints, make_state(step))
    checkpoints.close()
    complete = tmp_path / "checkpoints" / "best" / "20"
    expected = (complete / "records" / "metadata").read_bytes()
    complete.rename(complete.with_name("20.orbax-checkpoint-tmp"))
    assert read_weights(tmp_path).step == 10
    restored, records = restore(tmp_path, make_template(make_state(1)))
    assert int(restored.step) == 20 and records == RECORDS
    assert read_weights(tmp_path).step == 20
    assert_equal_trees(read_weights(tmp_path).variables, make_state(20).weights())
    assert (complete / "records" / "metadata").read_bytes() == expected


def test_the_last_checkpoint_waits_only_for_best_weights_of_an_earlier_step(tmp_path, monkeypatch):
    checkpoints, waits = Checkpoints(tmp_path), []
    checkpoints.save_best(10, make_state(10).weights(), {"CIDEr-D": 0.1})
    monkeypatch.setattr(checkpoints._best, "wait_until_finished", lambda: waits.append(None))
    save(checkpoints, make_state(10))
    assert waits == []
    save(checkpoints, make_state(15))
    assert len(waits) == 1
    monkeypatch.undo()
    checkpoints.close()
    assert (read_weights(tmp_path).step, read_weights(tmp_path, "last").step) == (10, 15)


def test_unfinished_checkpoints_are_skipped(tmp_path):
    save_states(tmp_path, make_state(3))
    last = tmp_path / "checkpoints" / "last"
    shutil.copytree(last / "3", last / "6.orbax-checkpoint-tmp")
    (last / "6.orbax-checkpoint-tmp" / "records" / "metadata").unlink()
    assert read_weights(tmp_path, "last").step == 3
    restored, _ = restore(tmp_path, make_template(make_state(1)))
    assert int(restored.step) == 3
    deadline = time.monotonic() + 60  # Orbax deletes the unfinished checkpoint in the background
    while len(list(last.iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [folder.name for folder in last.iterdir()] == ["3"]


def test_a_state_is_restored_on_a_different_number_of_devices(tmp_path):
    state, rules = make_state(9), (("decoder/embedding/embedding", ("model", None)),)
    one = get_shardings(state, make_device_mesh(1))
    eight = get_shardings(state, make_device_mesh(8))
    sharded = get_shardings(state, make_device_mesh(2, 4), rules)
    for index, (before, after) in enumerate([(one, eight), (eight, sharded), (sharded, one)]):
        workdir = save_states(tmp_path / str(index), jax.device_put(state, before))
        restored, _ = restore(workdir, make_template(state, after))
        assert_equal_trees(restored, state)
        jax.tree.map(
            lambda a, sharding: a.sharding.is_equivalent_to(sharding, a.ndim) or pytest.fail(), restored, after
        )
    assert_equal_trees(read_weights(tmp_path / "2").variables, state.weights())
    sharded_state = jax.device_put(state, sharded)
    embedding = to_saved(sharded_state.opt_state).moments["from_step_0"].mu["decoder"]["embedding"]["embedding"]
    assert embedding.addressable_shards[0].data.shape == (4, 8)  # moments are sharded like their parameters


def test_a_checkpoint_of_a_different_model_is_rejected(tmp_path):
    save_states(tmp_path, make_state(4))
    with pytest.raises(ValueError, match=rf"step 4 in .*does not match.*\n?.*--config.init_from={tmp_path}.*") as error:
        restore(tmp_path, make_template(make_state(4, width=16)))
    assert "16" in str(error.value) and "8" in str(error.value)
    with pytest.raises(ValueError, match="does not match"):
        restore(tmp_path, make_template(make_state(4, averaged=False)))
    assert read_weights(tmp_path).step == 4


def test_missing_checkpoints_and_unknown_names_are_rejected(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(
            FileNotFoundError, match=f"no checkpoint in {folder}/checkpoints: is {folder} the --workdir"
        ):
            read_weights(folder)
        assert not (folder / "checkpoints").exists()
    with pytest.raises(ValueError, match="'newest'"):
        read_weights(tmp_path, "newest")
