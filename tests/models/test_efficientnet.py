"""EfficientNet: published parameter counts, stochastic depth, frozen parts and sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from program_stats import compute_stats

from caption_jax.models.backbones.efficientnet import EfficientNet, append_finer_cells, drop_path
from caption_jax.models.backbones.efficientnet_variants import VARIANTS, get_variant

IMAGES = jnp.asarray(np.random.RandomState(0).randn(8, 32, 32, 3), jnp.float32)
QUICK_COMPILATION = {"xla_backend_optimization_level": "0"}


def infer_shapes(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)


@functools.cache
def make_variables():
    """Returns random parameters and statistics of the micro variant, sampled in NumPy."""
    rng = np.random.RandomState(0)
    _, tree = infer_shapes(EfficientNet("micro"), 32)

    def sample(path, leaf):
        name = path.rsplit("/", 1)[-1]
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        scale = 0.1 if name in ("bias", "mean") else (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return (scale * rng.randn(*leaf.shape)).astype(np.float32)

    flat = traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict({path: sample(path, leaf) for path, leaf in flat.items()}, sep="/")


@functools.cache
def compile_run(train, **settings):
    model = EfficientNet("micro", **settings)

    def apply(variables, images, key):
        return model.apply(variables, images, train=train, rngs={"dropout": key}, mutable=["batch_stats"])

    return jax.jit(apply).lower(make_variables(), IMAGES, jax.random.key(0)).compile(QUICK_COMPILATION)


def run(train, key=0, **settings):
    """Returns features and updated statistics."""
    return compile_run(train, **settings)(make_variables(), IMAGES, jax.random.key(key))


# Published parameter counts without the 1000-way classifier.
PARAMETERS = {
    "b0": 5_288_548 - 1_281_000,
    "b3": 12_233_232 - 1_537_000,
    "b7": 66_347_960 - 2_561_000,
    "lite0": 4_652_008 - 1_281_000,
}


SLOW = {"b3": pytest.mark.slow, "b7": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in PARAMETERS])
def test_parameter_counts_match_the_published_counts(name):
    features, tree = infer_shapes(EfficientNet(name), VARIANTS[name].resolution)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == PARAMETERS[name]
    side = -(-VARIANTS[name].resolution // 32)
    assert features.shape == (1, side, side, VARIANTS[name].head_channels)


@pytest.mark.parametrize("name", ["lite1", "lite4", "tiny", "micro"])
def test_output_shapes_and_squeeze_excite_match_the_variant(name):
    features, tree = infer_shapes(EfficientNet(name), VARIANTS[name].resolution)
    side = -(-VARIANTS[name].resolution // VARIANTS[name].stride)
    assert features.shape == (1, side, side, VARIANTS[name].head_channels)
    has_squeeze = any("squeeze" in path for path in traverse_util.flatten_dict(tree["params"], sep="/"))
    assert has_squeeze == VARIANTS[name].squeeze_excite


def test_parameter_paths_are_stable():
    paths = set(traverse_util.flatten_dict(infer_shapes(EfficientNet("b0"), 64)[1]["params"], sep="/"))
    assert {
        "stem/conv/kernel",
        "stem/norm/scale",
        "stage_1/block_0/depthwise/conv/kernel",
        "stage_7/block_0/expand/conv/kernel",
        "stage_7/block_0/squeeze/reduce/bias",
        "stage_7/block_0/project/norm/bias",
        "head/conv/kernel",
    } <= paths
    assert "stage_1/block_0/expand/conv/kernel" not in paths


def test_the_error_for_an_unknown_variant_lists_known_variants():
    with pytest.raises(ValueError, match=r"'b9'.*b0, b1"):
        get_variant("b9")


def test_drop_path_drops_whole_images_and_preserves_the_mean():
    x = jnp.ones((4000, 2, 1, 3))
    out = np.asarray(drop_path(jax.random.key(0), x, 0.25))
    survived = out[:, 0, 0, 0] != 0
    np.testing.assert_allclose(out[survived], 1 / 0.75, rtol=1e-6)
    assert (out[~survived] == 0).all()
    assert 0.72 < survived.mean() < 0.78


def test_stochastic_depth_is_active_in_training_only():
    all_blocks, _ = run(True)
    first, _ = run(True, key=0, drop_path=0.9)
    assert not np.allclose(first, run(True, key=1, drop_path=0.9)[0])
    assert not np.allclose(first, all_blocks)
    np.testing.assert_array_equal(run(False, drop_path=0.9)[0], run(False)[0])


def get_norm_paths():
    flat = traverse_util.flatten_dict(make_variables()["batch_stats"], sep="/")
    return frozenset(path.rsplit("/", 1)[0] for path in flat)


def test_a_network_with_frozen_norms_is_deterministic():
    features, new = run(True, drop_path=0.9, frozen_norms=get_norm_paths())
    np.testing.assert_allclose(features, run(False)[0], rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], make_variables()["batch_stats"])


def test_statistics_of_frozen_norms_are_unchanged():
    frozen = frozenset(path for path in get_norm_paths() if path.startswith(("stem", "stage_1", "stage_2")))
    assert frozen
    _, new = run(True, frozen_norms=frozen)
    for path, old in traverse_util.flatten_dict(make_variables()["batch_stats"], sep="/").items():
        updated = traverse_util.flatten_dict(new["batch_stats"], sep="/")[path]
        assert np.array_equal(updated, old) == (path.rsplit("/", 1)[0] in frozen), path


@pytest.mark.parametrize("stage", ["stage_2", "head"])
def test_a_network_run_in_two_parts_gives_the_same_features(stage):
    model = EfficientNet("micro")
    lower_stages = get_variant("micro").stages_up_to(stage)
    lower_variables = {name: {part: tree[part] for part in lower_stages} for name, tree in make_variables().items()}

    def run_in_two_parts(lower_variables, variables, images):
        activations = model.apply(lower_variables, images, train=False, stop_after=stage)
        return model.apply(variables, activations, train=False, start_after=stage)

    arguments = (lower_variables, make_variables(), IMAGES)
    features = jax.jit(run_in_two_parts).lower(*arguments).compile(QUICK_COMPILATION)(*arguments)
    np.testing.assert_allclose(features, run(False)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_the_finer_cells_of_each_cell_are_appended_to_its_channels(shape):
    rng = np.random.RandomState(0)
    x, fine = rng.randn(2, 2, 3, 5).astype(np.float32), rng.randn(2, *shape, 7).astype(np.float32)
    out = np.asarray(append_finer_cells(jnp.asarray(x), jnp.asarray(fine)))
    assert out.shape == (2, 2, 3, 5 + 4 * 7)
    np.testing.assert_array_equal(out[..., :5], x)
    padded = np.zeros((2, 4, 6, 7), np.float32)
    padded[:, : shape[0], : shape[1]] = fine
    for row, column in np.ndindex(2, 3):
        cells = [padded[:, 2 * row + i, 2 * column + j] for i in range(2) for j in range(2)]
        np.testing.assert_array_equal(out[:, row, column, 5:], np.concatenate(cells, axis=-1))


@pytest.mark.parametrize("start", ["", "stem", "stage_1"])
def test_features_of_a_finer_stage_are_those_of_the_stage_itself(start):
    model, plain = EfficientNet("micro", fine_stage="stage_1"), EfficientNet("micro")

    def run_both(variables, images):
        inputs = images if not start else plain.apply(variables, images, train=False, stop_after=start)
        fine = plain.apply(variables, images, train=False, stop_after="stage_1")
        last = plain.apply(variables, images, train=False)
        return model.apply(variables, inputs, train=False, start_after=start), append_finer_cells(last, fine)

    arguments = make_variables(), IMAGES
    actual, expected = jax.jit(run_both).lower(*arguments).compile(QUICK_COMPILATION)(*arguments)
    assert actual.shape[-1] > run(False)[0].shape[-1]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_output_of_a_later_stage_does_not_contain_the_finer_features():
    model = EfficientNet("micro", fine_stage="stage_1")
    features = EfficientNet("micro").apply(make_variables(), IMAGES[:1], train=False, stop_after="stage_2")
    with pytest.raises(ValueError, match=r"fine_stage='stage_1' is not part of that of 'stage_2'"):
        model.apply(make_variables(), features, train=False, start_after="stage_2")


def test_statistics_below_a_split_are_unchanged():
    def run_upper_stages(variables, features):
        return EfficientNet("micro").apply(
            variables, features, train=True, start_after="stage_2", mutable=["batch_stats"]
        )

    arguments = (make_variables(), jnp.ones((8, 8, 8, 8)))
    _, new = jax.jit(run_upper_stages).lower(*arguments).compile(QUICK_COMPILATION)(*arguments)
    old, updated = (traverse_util.flatten_dict(tree["batch_stats"], sep="/") for tree in (make_variables(), new))
    assert old.keys() == updated.keys()
    for path in old:
        assert np.array_equal(old[path], updated[path]) == path.startswith(("stem", "stage_1", "stage_2")), path


def test_the_error_for_an_unknown_stage_lists_known_stages():
    with pytest.raises(ValueError, match=r"'stage_9'; expected one of stem, stage_1, .*, head"):
        EfficientNet("micro").apply(make_variables(), IMAGES, train=False, stop_after="stage_9")


def test_bfloat16_is_close_to_float32():
    expected, _ = run(False)
    actual, _ = run(False, dtype=jnp.bfloat16)
    assert actual.dtype == jnp.bfloat16
    assert np.abs(actual.astype(np.float32) - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.slow
def test_eight_devices_match_one_device():
    model = EfficientNet("micro", norm_group_size=1, drop_path=0.5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def step(params, images):
        def loss(params):
            all_variables = {"params": params, "batch_stats": make_variables()["batch_stats"]}
            rngs = {"dropout": jax.random.key(0)}
            features, new = model.apply(all_variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
            return jnp.mean(features**2), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    single_device_step = jax.jit(step).lower(make_variables()["params"], IMAGES).compile(QUICK_COMPILATION)
    (loss, stats), gradients = single_device_step(make_variables()["params"], IMAGES)
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    lowered = jax.jit(step).lower(make_variables()["params"], images)
    sharded_step = lowered.compile(QUICK_COMPILATION)
    assert {group["kind"] for group in compute_stats(lowered, sharded_step, mesh)["collectives"]} == {"all-reduce"}
    params = jax.device_put(make_variables()["params"], NamedSharding(mesh, PartitionSpec()))
    (sharded_loss, sharded_stats), sharded_gradients = sharded_step(params, images)
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(assert_close, sharded_stats, stats)
    jax.tree.map(assert_close, sharded_gradients, gradients)
