"""Losses, gradients and captions of the complete model are equal with reference and fast operations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from random_weights import random_variables

from caption_jax.augment import augment
from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.decoding import decode
from caption_jax.errors import ConfigError
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.objectives.forward_pass import CaptionRows
from caption_jax.specs import AugmentSpec, DecoderSpec, DecodeSpec, JointEmbeddingSpec, ModelSpec, TextEncoderSpec
from input_pipeline.packing import pack_captions

VOCABULARY_SIZE, LENGTH, BATCH, CAPTIONS = 1400, 12, 4, 2  # enough tokens for the blockwise top k
# With excess precision, XLA skips roundings to bfloat16 inside fusions, and the reference has more such roundings.
COMPILER_OPTIONS = {"xla_backend_optimization_level": "0", "xla_allow_excess_precision": False}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
TOKENS = np.full((BATCH, CAPTIONS, LENGTH), 1, np.int32)
for caption in TOKENS.reshape(-1, LENGTH):
    length = RNG.integers(3, LENGTH - 2)
    caption[: length + 2] = [0, *RNG.integers(4, VOCABULARY_SIZE, length), 2]


def make_model(ops: str, dtype=jnp.float32, dropout_bits: int = 8):
    spec = ModelSpec(
        ops=ops,
        encoder=EfficientNetBackbone("micro", norm_group_size=2, drop_path=0.3),
        decoder=DecoderSpec(layers=2, width=16, heads=2, feed_forward=32, dropout_bits=dropout_bits),
        text_encoder=TextEncoderSpec(layers=1, width=8, heads=2, feed_forward=16),
        joint_embedding=JointEmbeddingSpec(width=8),
    )
    text = roberta_settings(spec.text_encoder, VOCABULARY_SIZE, LENGTH, pad_id=1)
    return build_model(spec, VOCABULARY_SIZE, LENGTH, dtype, text_encoder=text)


@functools.cache
def make_variables():
    return random_variables(make_model("fast"), IMAGES[:1], TOKENS[:1, :1])


def compute_loss(model, rows):
    """Returns the caption loss minus the mean similarity of images and captions in the joint embedding space."""
    features = model.encode_images(IMAGES, train=True)
    output = model.decode(rows.inputs, features, segments=rows.segments, train=True)
    loss = model.ops.vocabulary_cross_entropy(output.states, *model.output_layer(), rows.targets, rows.weights, 0.1)
    texts = TOKENS[:, 0]
    cosines = model.embed_images(features) * model.embed_texts(texts, texts != 1, train=True)
    similarity = cosines * model.similarity_scale()
    return loss.loss_sum / loss.weight_sum - similarity.sum() / BATCH


def make_rows(packed):
    batch = {"tokens": TOKENS, "mask": np.ones(BATCH, bool)}
    return CaptionRows.from_batch(jax.tree.map(jnp.asarray, batch | (pack_captions(**batch, rows=1) if packed else {})))


def compute_loss_and_gradients(model, packed):
    rows = make_rows(packed)

    def loss(params):
        step_variables = {"params": params, "batch_stats": make_variables()["batch_stats"]}
        rngs = {"dropout": jax.random.key(2)}
        value, updated = model.apply(step_variables, rows, rngs=rngs, mutable=["batch_stats"], method=compute_loss)
        return value, updated["batch_stats"]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=COMPILER_OPTIONS)
    (value, statistics), gradients = step(make_variables()["params"])
    flat_gradients, flat_statistics = (
        traverse_util.flatten_dict(jax.device_get(tree), sep="/") for tree in (gradients, statistics)
    )
    return float(value), flat_gradients, flat_statistics


# The absolute tolerance is for biases before a batch norm, whose gradients are 0 except for rounding errors.
TOLERANCES = {
    jnp.float32: {"loss": 1e-6, "relative": 1e-5, "absolute": 1e-6},
    jnp.bfloat16: {"loss": 5e-3, "relative": 0.1, "absolute": 1e-2},
}


@pytest.mark.parametrize(
    ("dtype", "bits", "packed"),
    [
        (jnp.float32, 8, True),
        pytest.param(jnp.float32, 16, False, marks=pytest.mark.slow),
        pytest.param(jnp.bfloat16, 8, False, marks=pytest.mark.slow),
    ],
)
def test_a_training_step_has_equal_losses_gradients_and_statistics(dtype, bits, packed):
    models = [make_model(ops, dtype, bits) for ops in ("reference", "fast")]
    reference, fast = (compute_loss_and_gradients(model, packed) for model in models)
    tolerances = TOLERANCES[dtype]
    assert fast[0] == pytest.approx(reference[0], rel=tolerances["loss"])
    assert {path.split("/")[0] for path in reference[1]} == {
        "image_encoder",
        "decoder",
        "text_encoder",
        "joint_embedding",
    }
    for ours, expected in zip(fast[1:], reference[1:], strict=True):
        assert ours.keys() == expected.keys()
        for path in ours:
            difference, norm = np.linalg.norm(ours[path] - expected[path]), np.linalg.norm(expected[path])
            assert difference <= tolerances["relative"] * norm + tolerances["absolute"], path


@pytest.mark.parametrize("method", [pytest.param("greedy", marks=pytest.mark.slow), "beam"])
def test_captions_are_equal(method):
    def run_decode(ops):
        model, spec = make_model(ops), DecodeSpec(method=method, max_length=LENGTH, candidates=3, alpha=0.7)

        @jax.jit
        def run(variables, images):
            features = model.apply(variables, images, method="encode_images")
            return decode(model, variables, features, spec)

        return run(make_variables(), IMAGES)

    fast, reference = run_decode("fast"), run_decode("reference")
    np.testing.assert_array_equal(fast.all_tokens, reference.all_tokens)
    np.testing.assert_allclose(fast.all_scores, reference.all_scores, rtol=1e-5)
    assert len(np.unique(fast.all_tokens.reshape(-1, fast.all_tokens.shape[-1]), axis=0)) > 1


def test_augmented_images_are_equal():
    spec = AugmentSpec(flip=True, min_crop_scale=0.4, max_aspect=1.4, brightness=0.3)
    pixels = RNG.integers(0, 256, (BATCH, 24, 24, 3), np.uint8)
    fast, reference = (
        augment(jax.random.key(0), pixels, spec, ops=make_model(name).ops) for name in ("fast", "reference")
    )
    np.testing.assert_allclose(fast, reference, atol=1e-2)


def test_unknown_ops_are_rejected():
    with pytest.raises(ConfigError, match=r"config\.model\.ops is 'slow'"):
        ModelSpec(ops="slow")
