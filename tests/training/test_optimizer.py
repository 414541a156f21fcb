"""Optimizer updates, learning-rate schedules and the moving average of parameters."""

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
from caption_jax.training.optimizer import clip_by_global_norm, ema_update, make_optimizer
from caption_jax.training.saved_optimizer import to_saved
from caption_jax.training.schedules import make_schedule

STAGED = (
    (r"encoder/(stem|norm)/.*", {"lr": 0}),
    (r"encoder/head/.*", {"lr": 0.1, "from_step": 3}),
    (r"decoder/.*", {}),
)


def _make_params() -> dict:
    rng = np.random.default_rng(0)

    def sample(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    return {
        "encoder": {
            "stem": {"kernel": sample(3, 4)},
            "norm": {"scale": sample(4), "bias": sample(4)},
            "head": {"kernel": sample(4, 5), "bias": sample(5)},
        },
        "decoder": {
            "out": {"kernel": sample(5, 6), "bias": sample(6)},
            "norm": {"scale": sample(6), "bias": sample(6)},
        },
    }


def _make_gradients(seed: int) -> dict:
    keys = iter(jax.random.split(jax.random.key(seed), 20))
    return jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), _make_params())


def _make_spec(**settings) -> OptimizerSpec:
    return OptimizerSpec(**{"warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0, **settings})


def _train(spec: OptimizerSpec, steps: int, params: dict | None = None, gradients=_make_gradients):
    params = _make_params() if params is None else params
    optimizer, _ = make_optimizer(spec, params, 100)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# --- updates ---------------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_unchanged_and_have_no_moments():
    params, state = _train(_make_spec(rules=STAGED, weight_decay=0.5), 6)
    before, after = flatten(_make_params()), flatten(params)
    for path in ("encoder/stem/kernel", "encoder/norm/scale", "encoder/norm/bias"):
        np.testing.assert_array_equal(before[path], after[path])
    moment_paths = "".join(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state))
    assert "stem" not in moment_paths and "head" in moment_paths


def test_parameters_are_frozen_with_zero_moments_until_the_step_of_their_rule():
    spec = _make_spec(rules=STAGED, weight_decay=0.5)
    params, state = _train(spec, 3)
    np.testing.assert_array_equal(params["encoder"]["head"]["kernel"], _make_params()["encoder"]["head"]["kernel"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(to_saved(state).moments["from_step_3"]))
    params, state = _train(spec, 4)
    assert np.any(params["encoder"]["head"]["kernel"] != _make_params()["encoder"]["head"]["kernel"])


def test_an_unfrozen_parameter_is_updated_as_in_a_new_run():
    late_rules = (("encoder/head/.*", {"from_step": 4}), ("(?!encoder/head/).*", {}))
    params, _ = _train(_make_spec(rules=late_rules), 6)
    shifted, _ = _train(_make_spec(), 2, gradients=lambda step: _make_gradients(step + 4))
    np.testing.assert_allclose(params["encoder"]["head"]["kernel"], shifted["encoder"]["head"]["kernel"], rtol=1e-6)


def test_rules_that_start_after_the_last_step_cause_a_warning(caplog):
    spec = _make_spec(rules=STAGED)
    with caplog.at_level("WARNING"):
        make_optimizer(spec, _make_params(), 3)
    assert "encoder/head/" in caplog.text and "from step 3 on" in caplog.text
    caplog.clear()
    make_optimizer(spec, _make_params(), 4)
    assert not caplog.text


def test_clipping_uses_the_gradient_norm_of_trainable_parameters():
    rules = (("decoder/.*", {"from_step": 1}), ("encoder/stem/.*", {}), ("encoder/(head|norm)/.*", {"lr": 0}))
    spec = _make_spec(name="sgd", b1=0.0, learning_rate=1.0, weight_decay=0.0, clip_norm=0.01, rules=rules)
    large = {**_make_gradients(0), "decoder": jax.tree.map(lambda a: 1e6 * a, _make_gradients(0)["decoder"])}
    params, _ = _train(spec, 1, gradients=lambda step: large)
    updates = jax.tree.map(jnp.subtract, _make_params(), params)
    np.testing.assert_allclose(optax.tree.norm(updates["encoder"]["stem"]), 0.01, rtol=1e-3)
    assert float(optax.tree.norm(updates)) == pytest.approx(0.01, rel=1e-3)


def test_gradients_below_the_clip_norm_are_unchanged():
    small = jax.tree.map(lambda a: 1e-3 * a, _make_gradients(0))
    config = {"name": "sgd", "b1": 0.0, "weight_decay": 0.0}
    clipped, _ = _train(_make_spec(**config, clip_norm=10.0), 1, gradients=lambda step: small)
    unclipped, _ = _train(_make_spec(**config), 1, gradients=lambda step: small)
    jax.tree.map(np.testing.assert_array_equal, clipped, unclipped)


def test_weight_decay_of_matrices_is_scaled_by_the_rule():
    rules = (("encoder/.*", {"decay": 0.5}), ("decoder/out/.*", {"lr": 0.1}), ("decoder/norm/.*", {"decay": 3.0}))
    zero = jax.tree.map(jnp.zeros_like, _make_params())
    spec = _make_spec(rules=rules, learning_rate=0.1, weight_decay=0.2)
    params, _ = _train(spec, 1, gradients=lambda step: zero)
    ratio = jax.tree.map(lambda new, old: np.asarray(new / old), params, _make_params())
    np.testing.assert_allclose(ratio["encoder"]["stem"]["kernel"], 1 - 0.1 * 0.2 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(ratio["decoder"]["out"]["kernel"], 1 - 0.1 * 0.2 * 0.1, rtol=1e-5)
    for vector in (
        ratio["decoder"]["norm"]["scale"],
        ratio["decoder"]["out"]["bias"],
        ratio["encoder"]["norm"]["bias"],
    ):
        np.testing.assert_array_equal(vector, 1)


def test_adam_equals_adamw_without_weight_decay():
    adam, _ = _train(_make_spec(name="adam", weight_decay=0.3), 3)
    adamw, _ = _train(_make_spec(name="adamw", weight_decay=0.0), 3)
    jax.tree.map(np.testing.assert_array_equal, adam, adamw)


def test_updates_are_scaled_by_the_learning_rate_of_the_rule():
    rules = (("encoder/.*", {"lr": 0.25}), ("decoder/.*", {}))
    slow, _ = _train(_make_spec(rules=rules, weight_decay=0.0), 1)
    without_rules, _ = _train(_make_spec(weight_decay=0.0), 1)
    updates = [jax.tree.map(jnp.subtract, params, _make_params()) for params in (slow, without_rules)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 0.25 * b, atol=1e-6), *(tree["encoder"] for tree in updates)
    )
    jax.tree.map(np.testing.assert_array_equal, *(tree["decoder"] for tree in updates))


def test_rules_that_freeze_everything_are_rejected():
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizer(_make_spec(rules=((".*", {"lr": 0}),)), _make_params(), 10)


# --- schedules -------------------------------------------------------------------------------------------------------


def _compute_rates(total: int, **settings) -> np.ndarray:
    schedule = make_schedule(_make_spec(learning_rate=2.0, **settings), total)
    return np.array([float(schedule(step)) for step in range(total)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_linearly(name):
    rates = _compute_rates(20, schedule=name, warmup_steps=4)
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert np.all(np.diff(rates[3:]) <= 0)


def test_schedules_end_at_their_final_rate():
    common = {"warmup_steps": 4, "final_fraction": 0.1}
    assert _compute_rates(20, schedule="cosine", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _compute_rates(20, schedule="linear", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _compute_rates(20, schedule="constant", **common)[-1] == 2.0
    assert _compute_rates(20, schedule="rsqrt", **common)[15] == pytest.approx(2.0 * np.sqrt(4 / 16), rel=1e-5)
    assert _compute_rates(21, schedule="cosine", warmup_steps=1)[10] == pytest.approx(1.0, rel=1e-5)  # halfway down


def test_schedules_match_their_formulas_at_every_step():
    warmup, total, final = 1000, 3000, 0.1
    t = np.arange(1, total + 1)
    progress = np.clip((t - warmup) / (total - warmup), 0, 1)
    factors = {
        "constant": np.ones(total),
        "linear": 1 - (1 - final) * progress,
        "cosine": final + (1 - final) * (1 + np.cos(np.pi * progress)) / 2,
        "rsqrt": np.sqrt(warmup / np.maximum(t, warmup)),
    }
    for name in SCHEDULES:
        schedule = make_schedule(
            _make_spec(learning_rate=0.3, schedule=name, warmup_steps=warmup, final_fraction=final), total
        )
        rates = jax.jit(jax.vmap(schedule))(np.arange(total))
        np.testing.assert_allclose(rates, 0.3 * np.minimum(t / warmup, 1) * factors[name], rtol=1e-6)


def test_a_run_may_be_shorter_than_the_warm_up():
    np.testing.assert_allclose(_compute_rates(3, schedule="cosine", warmup_steps=10), [0.2, 0.4, 0.6], rtol=1e-6)


# --- moving average --------------------------------------------------------------------------------------------------


def test_the_decay_of_the_average_increases_with_the_step():
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


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 100.0, np.nan])
def test_clipping_equals_that_of_optax(scale):
    rng = np.random.default_rng(0)
    gradients = {"a": jnp.asarray(rng.normal(size=(3, 4)) * scale), "b": jnp.asarray(rng.normal(size=5) * scale)}
    ours, reference = clip_by_global_norm(1.5), optax.clip_by_global_norm(1.5)
    assert ours.init(gradients) == reference.init(gradients)  # checkpoints contain the state
    (actual, _), (expected, _) = (clip.update(gradients, clip.init(gradients)) for clip in (ours, reference))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), actual, expected)
    if scale == 0.1:  # the norm is below the maximum
        jax.tree.map(np.testing.assert_array_equal, actual, gradients)
