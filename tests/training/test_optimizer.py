from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from caption_jax.errors import ConfigError
from caption_jax.parameters.paths import flatten
from caption_jax.specs import OptimizerSpec
from caption_jax.specs.learning_spec import SCHEDULES
from caption_jax.training.optimizer import ema_update, make_optimizer
from caption_jax.training.saved_optimizer import to_saved
from caption_jax.training.schedules import make_schedule

STAGED = (
    (r"encoder/(stem|norm)/.*", {"lr": 0}),
    (r"encoder/head/.*", {"lr": 0.1, "from_step": 3}),
    (r"decoder/.*", {}),
)


def _params() -> dict:
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    return {
        "encoder": {
            "stem": {"kernel": draw(3, 4)},
            "norm": {"scale": draw(4), "bias": draw(4)},
            "head": {"kernel": draw(4, 5), "bias": draw(5)},
        },
        "decoder": {"out": {"kernel": draw(5, 6), "bias": draw(6)}, "norm": {"scale": draw(6), "bias": draw(6)}},
    }


def _gradients(seed: int) -> dict:
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    return jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), _params())


def _spec(**settings) -> OptimizerSpec:
    return OptimizerSpec(**{"warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0, **settings})


def _run(spec: OptimizerSpec, steps: int, params: dict | None = None, gradients=_gradients):
    params = _params() if params is None else params
    optimizer, _ = make_optimizer(spec, params, 100)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# --- updates ---------------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_unchanged_and_have_no_moments():
    params, state = _run(_spec(rules=STAGED, weight_decay=0.5), 6)
    before, after = flatten(_params()), flatten(params)
    for path in ("encoder/stem/kernel", "encoder/norm/scale", "encoder/norm/bias"):
        np.testing.assert_array_equal(before[path], after[path])
    held = "".join(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    assert "stem" not in held and "head" in held


def test_parameters_are_frozen_without_moments_until_their_step():
    spec = _spec(rules=STAGED, weight_decay=0.5)
    params, state = _run(spec, 3)
    np.testing.assert_array_equal(params["encoder"]["head"]["kernel"], _params()["encoder"]["head"]["kernel"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_saved(state).moments["from_step_3"]))
    params, state = _run(spec, 4)
    assert np.any(params["encoder"]["head"]["kernel"] != _params()["encoder"]["head"]["kernel"])


def test_an_unfrozen_parameter_starts_like_a_new_run():
    late = (("encoder/head/.*", {"from_step": 4}), ("(?!encoder/head/).*", {}))
    params, _ = _run(_spec(rules=late), 6)
    shifted, _ = _run(_spec(), 2, gradients=lambda step: _gradients(step + 4))
    np.testing.assert_allclose(params["encoder"]["head"]["kernel"], shifted["encoder"]["head"]["kernel"], rtol=1e-6)


def test_rules_that_start_after_the_last_step_are_reported(caplog):
    spec = _spec(rules=STAGED)
    with caplog.at_level("WARNING"):
        make_optimizer(spec, _params(), 3)
    assert "encoder/head/" in caplog.text and "from step 3 on" in caplog.text
    caplog.clear()
    make_optimizer(spec, _params(), 4)
    assert not caplog.text


def test_the_norm_is_clipped_over_trainable_parameters():
    rules = (("decoder/.*", {"from_step": 1}), ("encoder/stem/.*", {}), ("encoder/(head|norm)/.*", {"lr": 0}))
    spec = _spec(name="sgd", b1=0.0, learning_rate=1.0, weight_decay=0.0, clip_norm=0.01, rules=rules)
    huge = {**_gradients(0), "decoder": jax.tree.map(lambda a: 1e6 * a, _gradients(0)["decoder"])}
    params, _ = _run(spec, 1, gradients=lambda step: huge)
    moved = jax.tree.map(jnp.subtract, _params(), params)
    np.testing.assert_allclose(optax.tree.norm(moved["encoder"]["stem"]), 0.01, rtol=1e-3)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-3)


def test_gradients_under_the_limit_are_unchanged():
    small = jax.tree.map(lambda a: 1e-3 * a, _gradients(0))
    config = {"name": "sgd", "b1": 0.0, "weight_decay": 0.0}
    clipped, _ = _run(_spec(**config, clip_norm=10.0), 1, gradients=lambda step: small)
    free, _ = _run(_spec(**config), 1, gradients=lambda step: small)
    jax.tree.map(np.testing.assert_array_equal, clipped, free)


def test_only_matrices_decay_by_the_multiple_of_the_rule():
    rules = (("encoder/.*", {"decay": 0.5}), ("decoder/out/.*", {"lr": 0.1}), ("decoder/norm/.*", {"decay": 3.0}))
    zero = jax.tree.map(jnp.zeros_like, _params())
    spec = _spec(rules=rules, learning_rate=0.1, weight_decay=0.2)
    params, _ = _run(spec, 1, gradients=lambda step: zero)
    ratio = jax.tree.map(lambda new, old: np.asarray(new / old), params, _params())
    np.testing.assert_allclose(ratio["encoder"]["stem"]["kernel"], 1 - 0.1 * 0.2 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(ratio["decoder"]["out"]["kernel"], 1 - 0.1 * 0.2 * 0.1, rtol=1e-5)
    for vector in (
        ratio["decoder"]["norm"]["scale"],
        ratio["decoder"]["out"]["bias"],
        ratio["encoder"]["norm"]["bias"],
    ):
        np.testing.assert_array_equal(vector, 1)


def test_adam_is_adamw_without_decay():
    adam, _ = _run(_spec(name="adam", weight_decay=0.3), 3)
    adamw, _ = _run(_spec(name="adamw", weight_decay=0.0), 3)
    jax.tree.map(np.testing.assert_array_equal, adam, adamw)


def test_learning_rate_multiples_scale_the_update():
    rules = (("encoder/.*", {"lr": 0.25}), ("decoder/.*", {}))
    slow, _ = _run(_spec(rules=rules, weight_decay=0.0), 1)
    without_rules, _ = _run(_spec(weight_decay=0.0), 1)
    moved = [jax.tree.map(jnp.subtract, params, _params()) for params in (slow, without_rules)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.25 * b, atol=1e-6), *(m["encoder"] for m in moved))
    jax.tree.map(np.testing.assert_array_equal, *(m["decoder"] for m in moved))


def test_rules_that_freeze_everything_are_rejected():
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(_spec(rules=((".*", {"lr": 0}),)), _params(), 10)


# --- schedules -------------------------------------------------------------------------------------------------------


def _rates(total: int, **settings) -> np.ndarray:
    schedule = make_schedule(_spec(learning_rate=2.0, **settings), total)
    return np.array([float(schedule(step)) for step in range(total)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_linearly(name):
    rates = _rates(20, schedule=name, warmup_steps=4)
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert np.all(np.diff(rates[3:]) <= 0)


def test_schedules_end_at_their_final_rate():
    common = {"warmup_steps": 4, "final_fraction": 0.1}
    assert _rates(20, schedule="cosine", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _rates(20, schedule="linear", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _rates(20, schedule="constant", **common)[-1] == 2.0
    assert _rates(20, schedule="rsqrt", **common)[15] == pytest.approx(2.0 * np.sqrt(4 / 16), rel=1e-5)
    assert _rates(21, schedule="cosine", warmup_steps=1)[10] == pytest.approx(1.0, rel=1e-5)  # halfway down


def test_schedules_follow_their_formula_from_the_first_warm_up_step():
    warmup, total, final = 1000, 3000, 0.1
    t = np.arange(1, total + 1)
    progress = np.clip((t - warmup) / (total - warmup), 0, 1)
    after = {
        "constant": np.ones(total),
        "linear": 1 - (1 - final) * progress,
        "cosine": final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2,
        "rsqrt": np.sqrt(warmup / np.maximum(t, warmup)),
    }
    for name in SCHEDULES:
        schedule = make_schedule(
            _spec(learning_rate=0.3, schedule=name, warmup_steps=warmup, final_fraction=final), total
        )
        rates = jax.jit(jax.vmap(schedule))(np.arange(total))
        np.testing.assert_allclose(rates, 0.3 * np.minimum(t / warmup, 1) * after[name], rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    np.testing.assert_allclose(_rates(3, schedule="cosine", warmup_steps=10), [0.2, 0.4, 0.6], rtol=1e-6)


# --- moving average --------------------------------------------------------------------------------------------------


def test_the_average_follows_quickly_at_first_and_slowly_later():
    params = {"w": jnp.ones(3)}
    early = ema_update({"w": jnp.zeros(3)}, params, 0.999, 0)
    np.testing.assert_allclose(early["w"], 0.9, rtol=1e-6)  # decay (1 + 0) / (10 + 0)
    late = ema_update({"w": jnp.zeros(3)}, params, 0.999, jnp.int32(100_000))
    np.testing.assert_allclose(late["w"], 0.001, rtol=1e-3)


def test_the_average_of_a_frozen_parameter_equals_the_parameter():
    value = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100).astype(np.float32))}
    average = value
    for step in range(5):
        average = ema_update(average, value, 0.99, step)
    np.testing.assert_array_equal(average["w"], value["w"])
