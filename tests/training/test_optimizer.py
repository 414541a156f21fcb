from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from caption_jax.config import default_config
from caption_jax.parameters.paths import flatten
from caption_jax.training.optimizer import OPTIMIZERS, ema_update, make_optimizer
from caption_jax.training.schedules import SCHEDULES, make_schedule

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


def _config(**settings) -> ConfigDict:
    config = default_config().optimizer
    config.update({"warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0, **settings})
    return config


def _run(config: ConfigDict, steps: int, params: dict | None = None, gradients=_gradients):
    params = _params() if params is None else params
    optimizer, _ = make_optimizer(config, params, 100)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


# --- updates ---------------------------------------------------------------------------------------------------------


def test_frozen_parameters_stay_bit_for_bit_and_hold_no_moments():
    params, state = _run(_config(rules=STAGED, weight_decay=0.5), 6)
    before, after = flatten(_params()), flatten(params)
    for path in ("encoder/stem/kernel", "encoder/norm/scale", "encoder/norm/bias"):
        np.testing.assert_array_equal(before[path], after[path])
    held = "".join(jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.moments))
    assert "stem" not in held and "head" in held


def test_parameters_wait_for_their_step_without_moving_or_gathering_moments():
    config = _config(rules=STAGED, weight_decay=0.5)
    params, state = _run(config, 3)
    np.testing.assert_array_equal(params["encoder"]["head"]["kernel"], _params()["encoder"]["head"]["kernel"])
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.moments["from_step_3"]))
    params, state = _run(config, 4)
    assert np.any(params["encoder"]["head"]["kernel"] != _params()["encoder"]["head"]["kernel"])


def test_an_unfrozen_parameter_starts_as_if_training_began_there():
    late = (("encoder/head/.*", {"from_step": 4}), ("(?!encoder/head/).*", {}))
    params, _ = _run(_config(rules=late), 6)
    shifted, _ = _run(_config(), 2, gradients=lambda step: _gradients(step + 4))
    np.testing.assert_allclose(params["encoder"]["head"]["kernel"], shifted["encoder"]["head"]["kernel"], rtol=1e-6)


def _optax(name: str):
    if name == "adafactor":
        return optax.adafactor(1e-3, multiply_by_parameter_scale=False)
    methods = {
        "adam": optax.adam(1e-3, b1=0.9, b2=0.98),
        "adamw": optax.adamw(1e-3, b1=0.9, b2=0.98, weight_decay=0.0),
        "lion": optax.lion(1e-3, b1=0.9, b2=0.98, weight_decay=0.0),
        "sgd": optax.sgd(1e-3, momentum=0.9),
    }
    return methods[name]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_updates_equal_optax(name, clip_norm):
    config = _config(name=name, weight_decay=0.0, clip_norm=clip_norm)
    ours, _ = _run(config, 4)
    reference = _optax(name)
    if clip_norm:
        reference = optax.chain(optax.clip_by_global_norm(clip_norm), reference)
    params = _params()
    state = reference.init(params)
    for step in range(4):
        updates, state = reference.update(_gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, params)


def test_a_rule_that_starts_after_the_last_step_is_named(caplog):
    config = _config(rules=STAGED)
    with caplog.at_level("WARNING"):
        make_optimizer(config, _params(), 3)
    assert "encoder/head/" in caplog.text and "from step 3 on" in caplog.text
    caplog.clear()
    make_optimizer(config, _params(), 4)
    assert not caplog.text


def test_the_norm_is_clipped_over_what_is_training_now():
    rules = (("decoder/.*", {"from_step": 1}), ("encoder/stem/.*", {}), ("encoder/(head|norm)/.*", {"lr": 0}))
    config = _config(name="sgd", b1=0.0, learning_rate=1.0, weight_decay=0.0, clip_norm=0.01, rules=rules)
    huge = {**_gradients(0), "decoder": jax.tree.map(lambda a: 1e6 * a, _gradients(0)["decoder"])}
    params, _ = _run(config, 1, gradients=lambda step: huge)
    moved = jax.tree.map(jnp.subtract, _params(), params)
    np.testing.assert_allclose(optax.tree.norm(moved["encoder"]["stem"]), 0.01, rtol=1e-3)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.01, rel=1e-3)


def test_gradients_under_the_limit_are_left_alone():
    small = jax.tree.map(lambda a: 1e-3 * a, _gradients(0))
    config = {"name": "sgd", "b1": 0.0, "weight_decay": 0.0}
    clipped, _ = _run(_config(**config, clip_norm=10.0), 1, gradients=lambda step: small)
    free, _ = _run(_config(**config), 1, gradients=lambda step: small)
    jax.tree.map(np.testing.assert_array_equal, clipped, free)


def test_decay_shrinks_matrices_only_and_by_the_rule_s_multiple():
    rules = (("encoder/.*", {"decay": 0.5}), ("decoder/out/.*", {"lr": 0.1}), ("decoder/norm/.*", {"decay": 3.0}))
    zero = jax.tree.map(jnp.zeros_like, _params())
    config = _config(rules=rules, learning_rate=0.1, weight_decay=0.2)
    params, _ = _run(config, 1, gradients=lambda step: zero)
    share = jax.tree.map(lambda new, old: np.asarray(new / old), params, _params())
    np.testing.assert_allclose(share["encoder"]["stem"]["kernel"], 1 - 0.1 * 0.2 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(share["decoder"]["out"]["kernel"], 1 - 0.1 * 0.2 * 0.1, rtol=1e-5)
    for vector in (
        share["decoder"]["norm"]["scale"],
        share["decoder"]["out"]["bias"],
        share["encoder"]["norm"]["bias"],
    ):
        np.testing.assert_array_equal(vector, 1)


def test_adam_is_adamw_without_decay():
    adam, _ = _run(_config(name="adam", weight_decay=0.3), 3)
    adamw, _ = _run(_config(name="adamw", weight_decay=0.0), 3)
    jax.tree.map(np.testing.assert_array_equal, adam, adamw)


def test_learning_rate_multiples_scale_the_update():
    rules = (("encoder/.*", {"lr": 0.25}), ("decoder/.*", {}))
    slow, _ = _run(_config(rules=rules, weight_decay=0.0), 1)
    plain, _ = _run(_config(weight_decay=0.0), 1)
    moved = [jax.tree.map(jnp.subtract, params, _params()) for params in (slow, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 0.25 * b, atol=1e-6), *(m["encoder"] for m in moved))
    jax.tree.map(np.testing.assert_array_equal, *(m["decoder"] for m in moved))


def test_settings_that_cannot_work_are_refused():
    for settings, words in (
        ({"name": "adamx"}, "adamw, adam"),
        ({"b2": 1.0}, "b2"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"rules": ((".*", {"lr": 0}),)}, "nothing to train"),
        ({"schedule": "cosin"}, "cosine, rsqrt"),
    ):
        with pytest.raises(ValueError, match=words):
            make_optimizer(_config(**settings), _params(), 10)


# --- schedules -------------------------------------------------------------------------------------------------------


def _rates(total: int, **settings) -> np.ndarray:
    schedule = make_schedule(_config(learning_rate=2.0, **settings), total)
    return np.array([float(schedule(step)) for step in range(total)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_in_a_straight_line(name):
    rates = _rates(20, schedule=name, warmup_steps=4)
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert np.all(np.diff(rates[3:]) <= 0)


def test_schedules_end_where_they_should():
    common = {"warmup_steps": 4, "final_fraction": 0.1}
    assert _rates(20, schedule="cosine", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _rates(20, schedule="linear", **common)[-1] == pytest.approx(0.2, rel=1e-5)
    assert _rates(20, schedule="constant", **common)[-1] == 2.0
    assert _rates(20, schedule="rsqrt", **common)[15] == pytest.approx(2.0 * np.sqrt(4 / 16), rel=1e-5)
    assert _rates(21, schedule="cosine", warmup_steps=1)[10] == pytest.approx(1.0, rel=1e-5)  # halfway down


def test_a_run_shorter_than_its_warm_up_just_warms_up():
    np.testing.assert_allclose(_rates(3, schedule="cosine", warmup_steps=10), [0.2, 0.4, 0.6], rtol=1e-6)


# --- moving average --------------------------------------------------------------------------------------------------


def test_the_average_forgets_the_start_and_then_follows_slowly():
    params = {"w": jnp.ones(3)}
    early = ema_update({"w": jnp.zeros(3)}, params, 0.999, 0)
    np.testing.assert_allclose(early["w"], 0.9, rtol=1e-6)  # decay (1 + 0) / (10 + 0)
    late = ema_update({"w": jnp.zeros(3)}, params, 0.999, jnp.int32(100_000))
    np.testing.assert_allclose(late["w"], 0.001, rtol=1e-3)


def test_the_average_of_a_frozen_parameter_is_that_parameter():
    value = {"w": jnp.asarray(np.random.default_rng(0).normal(size=100).astype(np.float32))}
    average = value
    for step in range(5):
        average = ema_update(average, value, 0.99, step)
    np.testing.assert_array_equal(average["w"], value["w"])
