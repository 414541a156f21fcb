"""ViT: published parameter counts, stages, stochastic depth and sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from program_stats import compute_stats
from random_weights import random_variables

from caption_jax.models.backbones.vit import VisionTransformer
from caption_jax.models.backbones.vit_sizes import SIZES

IMAGES = jnp.asarray(np.random.RandomState(0).randn(8, 32, 32, 3), jnp.float32)
QUICK_COMPILATION = {"xla_backend_optimization_level": "0"}


@functools.cache
def make_variables(class_token=True):
    return random_variables(VisionTransformer("micro", class_token), IMAGES, train=False, scale=0.1)


@functools.cache
def compile_run(train, **settings):
    model = VisionTransformer("micro", **settings)

    def apply(variables, images, key):
        return model.apply(variables, images, train=train, rngs={"dropout": key})

    variables = make_variables(settings.get("class_token", True))
    return jax.jit(apply).lower(variables, IMAGES, jax.random.key(0)).compile(QUICK_COMPILATION)


def run(train=False, key=0, images=IMAGES, **settings):
    return np.asarray(
        compile_run(train, **settings)(make_variables(settings.get("class_token", True)), images, jax.random.key(key))
    )


def infer_shapes(model, size):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init_with_output, train=False), jax.random.key(0), images)


# Published parameter counts without the 1000-way classifier.
@pytest.mark.parametrize(("size", "parameters"), [("s16", 22_050_664 - 385_000), ("b16", 86_567_656 - 769_000)])
def test_parameter_counts_match_the_published_counts(size, parameters):
    features, tree = infer_shapes(VisionTransformer(size), 224)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == parameters
    assert features.shape == (2, 14, 14, SIZES[size].width)
    assert set(tree["params"]) == set(SIZES[size].stage_names)


def test_parameter_paths_are_stable():
    paths = set(traverse_util.flatten_dict(make_variables()["params"], sep="/"))
    assert {
        "embed/patches/kernel",
        "embed/class_token",
        "embed/position",
        "block_0/attention_norm/scale",
        "block_0/attention/qkv/kernel",
        "block_0/attention/out/bias",
        "block_1/feed_forward_norm/bias",
        "block_1/feed_forward/expand/kernel",
        "block_1/feed_forward/contract/bias",
        "norm/scale",
    } <= paths
    without = set(traverse_util.flatten_dict(make_variables(class_token=False)["params"], sep="/"))
    assert paths - without == {"embed/class_token"}


def test_features_are_in_patch_order():
    # A change stays local only in the embedding, because attention then mixes all patches.
    def embed(images):
        return VisionTransformer("micro").apply(make_variables(), images, train=False, stop_after="embed")

    changed = embed(IMAGES.at[:, 8:16, 24:32].add(1.0)) - embed(IMAGES)
    assert np.flatnonzero(np.abs(changed).max((0, 2))).tolist() == [1 + 1 * 4 + 3]
    # Features are in the order of the patches. The last norm is per token, so one different token changes one cell.
    tokens = jnp.zeros((1, 17, 32)).at[:, 1 + 2 * 4 + 1].set(jnp.arange(32.0))
    cells = VisionTransformer("micro").apply(make_variables(), tokens, train=False, start_after="block_1")
    differs = np.abs(cells - cells[:, :1, :1]).max(-1)[0] > 0
    assert np.argwhere(differs).tolist() == [[2, 1]]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("stage", ["embed", "block_0", "block_1", "norm"])
def test_a_network_run_in_two_parts_gives_the_same_features(stage, class_token):
    model, names = VisionTransformer("micro", class_token), SIZES["micro"].stage_names
    params = make_variables(class_token)["params"]
    lower_variables = {"params": {name: params[name] for name in names[: names.index(stage) + 1]}}
    upper_variables = {"params": {name: params[name] for name in names[names.index(stage) + 1 :]}}

    def run_in_two_parts(images):
        activations = model.apply(lower_variables, images, train=False, stop_after=stage)
        return model.apply(upper_variables, activations, train=False, start_after=stage)

    np.testing.assert_allclose(jax.jit(run_in_two_parts)(IMAGES), run(class_token=class_token), rtol=1e-5, atol=1e-5)


def test_stochastic_depth_is_active_in_training_only():
    all_blocks = run()
    np.testing.assert_array_equal(run(train=True), all_blocks)
    np.testing.assert_array_equal(run(drop_path=0.5), all_blocks)
    first = run(train=True, drop_path=0.5)
    assert not np.allclose(first, run(train=True, drop_path=0.5, key=1))
    # Each of the two branches of the last block is dropped or doubled, so there are up to four different results.
    features = run(train=True, drop_path=0.5, images=jnp.broadcast_to(IMAGES[:1], IMAGES.shape))
    assert 2 <= len(np.unique(features[:, 0, 0, 0].round(4))) <= 4


def test_blocks_with_frozen_norms_are_never_skipped():
    frozen = frozenset({"block_1/attention_norm", "block_1/feed_forward_norm"})
    np.testing.assert_array_equal(run(train=True, drop_path=0.9, frozen_norms=frozen), run())
    partly_frozen = frozenset({"block_1/attention_norm"})
    assert not np.allclose(run(train=True, drop_path=0.9, frozen_norms=partly_frozen), run())


def test_bfloat16_is_close_to_float32():
    actual = run(dtype=jnp.bfloat16)
    assert actual.dtype == jnp.bfloat16
    assert np.abs(actual.astype(np.float32) - run()).max() < 0.05 * np.abs(run()).max()


def test_every_parameter_has_a_gradient():
    def loss(params):
        return jnp.sum(VisionTransformer("micro").apply({"params": params}, IMAGES, train=True) ** 3)

    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(make_variables()["params"]), sep="/")
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


def test_eight_devices_match_one_device():
    model = VisionTransformer("micro", drop_path=0.5)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))

    def step(params, images):
        def loss(params):
            return jnp.mean(
                model.apply({"params": params}, images, train=True, rngs={"dropout": jax.random.key(0)}) ** 3
            )

        return jax.value_and_grad(loss)(params)

    params = make_variables()["params"]
    loss, gradients = jax.jit(step).lower(params, IMAGES).compile(QUICK_COMPILATION)(params, IMAGES)
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    lowered = jax.jit(step).lower(params, images)
    sharded_step = lowered.compile(QUICK_COMPILATION)
    assert {group["kind"] for group in compute_stats(lowered, sharded_step, mesh)["collectives"]} == {"all-reduce"}
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    sharded_loss, sharded_gradients = sharded_step(params, images)
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(assert_close, sharded_gradients, gradients)


def test_the_gelu_setting_changes_the_features():
    assert not np.array_equal(run(gelu="tanh"), run())


def test_image_sizes_with_partial_patches_are_rejected():
    for shape in ((1, 30, 30, 3), (1, 32, 24, 3)):
        with pytest.raises(ValueError, match=r"config\.data\.image_size"):
            VisionTransformer("micro").init(jax.random.key(0), jnp.zeros(shape), train=False)


def test_the_error_for_an_unknown_stage_lists_known_stages():
    with pytest.raises(ValueError, match=r"'stage_1'; expected one of embed, block_0, block_1, norm"):
        VisionTransformer("micro").apply(make_variables(), IMAGES, train=False, stop_after="stage_1")
