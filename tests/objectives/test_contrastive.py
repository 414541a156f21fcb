"""The contrastive objective: loss formula, masked rows, sharding, and separation from the decoder."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from program_stats import compute_stats
from quick_compilation import QUICK_COMPILATION
from small_run import shrink

from caption_jax.config import default_config
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.objectives.contrastive import Contrastive, Vectors, contrastive_loss, embed_batch
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.total_objective import make_objectives
from caption_jax.parameters.freezing import phases
from caption_jax.parameters.paths import flatten
from caption_jax.parameters.sharding import make_mesh, put_batch, replicated
from caption_jax.runs.description import TextTokenizer
from caption_jax.specs import ModelSpec, RunSpec, build_spec
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.state import create_state
from caption_jax.training.step import TrainStep
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import PAD

ROWS, CAPTIONS, WIDTH, SCALE = 16, 3, 8, 20.0
IMAGE_IDS = np.arange(ROWS, dtype=np.int32)  # image index of each row
IMAGE_IDS[5] = 2  # the same image as row 2
IMAGE_IDS[[7, 11]] = -1  # masked rows


def make_vectors(seed: int = 0, captions: int = CAPTIONS) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors of images, [rows, width], and of correlated captions, [rows, captions, width]."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(ROWS, WIDTH))
    texts = images[:, None] + 1.5 * rng.normal(size=(ROWS, captions, WIDTH))
    unit = [array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (images, texts)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def compute_reference_loss(images, texts, image_ids, scale) -> tuple[float, float, float]:
    """Computes the loss and both accuracies from their definitions, one pair at a time."""
    losses, image_correct, text_correct = [], [], []
    for i in np.flatnonzero(image_ids >= 0):
        others = [j for j in np.flatnonzero(image_ids >= 0) if image_ids[j] != image_ids[i]]
        other_texts = [scale * images[i] @ text for j in others for text in texts[j]]
        image_correct.append(max(scale * images[i] @ text for text in texts[i]) > max(other_texts))
        for text in texts[i]:
            positive = scale * images[i] @ text
            other_images = [scale * images[j] @ text for j in others]
            text_correct.append(positive > max(other_images))
            for negatives in (other_texts, other_images):
                losses.append(-np.log(np.exp(positive) / (np.exp(positive) + np.exp(negatives).sum())))
    return np.mean(losses), np.mean(image_correct), np.mean(text_correct)


def test_loss_and_accuracies_match_the_definition():
    images, texts = make_vectors()
    loss, *accuracies = (ratio.mean() for ratio in jax.jit(contrastive_loss)(Vectors(images, texts, SCALE), IMAGE_IDS))
    expected = compute_reference_loss(images.astype(np.float64), texts.astype(np.float64), IMAGE_IDS, SCALE)
    np.testing.assert_allclose([loss, *accuracies], expected, rtol=1e-5)
    assert all(0.2 < accuracy < 1 for accuracy in accuracies)


def test_loss_with_one_caption_per_image_equals_the_clip_loss():
    images, texts = make_vectors(captions=1)
    logits = SCALE * images @ texts[:, 0].T
    diagonal = [-np.diag(jax.nn.log_softmax(logits, axis)).mean() for axis in (0, 1)]
    loss = contrastive_loss(Vectors(images, texts, SCALE), np.arange(ROWS)).loss.mean()
    assert float(loss) == pytest.approx(np.mean(diagonal), rel=1e-5)


@functools.cache
def compute_gradients(devices: int):
    """Computes the loss and the gradients with respect to images, texts and scale.

    Returns:
        (loss, gradients), and the collectives of the program.
    """
    mesh = make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])

    def loss(images, texts, scale, image_ids):
        return contrastive_loss(Vectors(images, texts, scale), image_ids, mesh).loss.mean()

    images, texts = make_vectors()
    batch = put_batch({"images": images, "texts": texts, "image_ids": IMAGE_IDS}, mesh)
    scale = jax.device_put(jnp.float32(SCALE), replicated(mesh))
    arguments = (batch["images"], batch["texts"], scale, batch["image_ids"])
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments)
    compiled = lowered.compile()
    collectives = compute_stats(lowered, compiled, mesh, ROWS // devices)["collectives"]
    return jax.device_get(compiled(*arguments)), collectives


@pytest.mark.usefixtures("eight_devices")
def test_gradients_on_eight_devices_match_one_device():
    ((loss, gradients), _), ((other_loss, other_gradients), _) = compute_gradients(1), compute_gradients(8)
    assert other_loss == pytest.approx(loss, abs=1e-5)
    for gradient, other_gradient in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(other_gradient, gradient, rtol=0, atol=1e-5)
        assert np.abs(gradient).max() > 1e-3


@pytest.mark.usefixtures("eight_devices")
def test_images_captions_and_image_ids_are_gathered_once():
    _, collectives = compute_gradients(8)
    (gathers,) = [group for group in collectives if group["kind"] == "all-gather"]
    assert gathers["count"] == 3  # images, captions and image ids
    assert gathers["bytes"] == gathers["gathered"] == 4 * ROWS * (WIDTH + CAPTIONS * WIDTH + 1)


def test_masked_rows_have_no_effect_and_no_gradient():
    images, texts = make_vectors()
    compute_loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda i, t: contrastive_loss(Vectors(i, t, SCALE), IMAGE_IDS).loss.mean(), (0, 1))
    )
    loss, gradients = compute_loss_and_gradients(images, texts)
    replacements = make_vectors(seed=1)
    masked = IMAGE_IDS < 0
    changed = [
        np.where(masked.reshape(-1, *[1] * (array.ndim - 1)), replacement, array)
        for array, replacement in zip((images, texts), replacements, strict=True)
    ]
    other_loss, other_gradients = compute_loss_and_gradients(*changed)
    assert float(other_loss) == float(loss)
    for array, other in zip(gradients, other_gradients, strict=True):
        assert not np.asarray(array)[masked].any() and np.asarray(array)[~masked].any()
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("image_ids", [np.where(IMAGE_IDS == 0, 0, -1), np.zeros(ROWS, np.int32)])
def test_a_batch_without_negatives_has_zero_loss_and_gradient(image_ids):
    images, texts = make_vectors()
    compute_loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda i, t: contrastive_loss(Vectors(i, t, SCALE), image_ids).loss.mean(), (0, 1))
    )
    loss, gradients = compute_loss_and_gradients(images, texts)
    assert float(loss) == 0 and not any(np.asarray(array).any() for array in gradients)


class FakeVocabulary:
    """A vocabulary with full ids that are twice the compact ids."""

    size = 12

    def to_full(self, ids):
        return 2 * np.asarray(ids)


@functools.cache
def make_captioner():
    """Returns a model with a text encoder, randomly initialised variables, images and captions."""
    config = default_config()
    shrink(config)
    config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    config.model.joint_embedding.width = WIDTH
    model = build_model(
        build_spec(ModelSpec, config.model), 12, 6, text_encoder=roberta_settings(config.model.text_encoder, 12, 6, PAD)
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    tokens = rng.integers(4, 12, size=(4, 2, 6)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.normal(size=a.shape), a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return model, variables, images, tokens


def test_the_text_encoder_does_not_affect_the_decoder():
    model, variables, images, tokens = make_captioner()
    batch = {"tokens": tokens, "mask": np.ones(len(tokens), bool)}

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
    def run(params, shift):
        """Returns logits and joint vectors. The text encoder receives token ids shifted by `shift`."""

        def outputs(model):
            forward = ForwardPass(model, images, batch, text_ids=lambda tokens: (tokens + shift) % FakeVocabulary.size)
            return forward.decoded.logits, embed_batch(model, forward, tokens)

        return model.apply(
            {**variables, "params": params},
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
            method=outputs,
        )[0]

    params = variables["params"]
    logits, joint = run(params, 0)
    other_logits, other_joint = run(params, 5)
    np.testing.assert_array_equal(logits, other_logits)
    np.testing.assert_array_equal(joint.images, other_joint.images)
    difference = np.abs(np.asarray(joint.texts - other_joint.texts))
    assert difference.max(-1).min() > 1e-4, "the text encoder must receive the shifted ids"
    modified = {**params, "text_encoder": jax.tree.map(lambda a: a + 1, params["text_encoder"])}
    np.testing.assert_array_equal(run(modified, 0)[0], logits)


def test_captions_are_converted_to_roberta_token_ids():
    tokens = np.array([[0, 5, 11, 2, 1]])
    np.testing.assert_array_equal(TextTokenizer(FakeVocabulary(), True, 6).from_caption_ids(tokens), 2 * tokens)
    np.testing.assert_array_equal(TextTokenizer(FakeVocabulary(), False, 6).from_caption_ids(tokens), tokens)


def make_joint_step(model, optimizer, spec: RunSpec, frozen: frozenset[str], mesh) -> TrainStep:
    """Returns the training step for the sum of the caption loss and the contrastive loss."""
    objectives = {**make_objectives(spec.objective, joint_embedding=False), "contrastive": Contrastive(1.0)}
    text_ids = TextTokenizer(FakeVocabulary(), False, 6).from_caption_ids
    return TrainStep(model, optimizer, Preprocessing(32), spec, frozen, objectives, text_ids, mesh)


@pytest.mark.slow
def test_a_training_step_on_eight_devices_matches_one_device():
    """With SGD, parameter differences are proportional to gradient differences."""
    config = default_config()
    shrink(config)
    config.dtype = "float32"
    config.optimizer.update({"name": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 0.0})
    model, variables, _, _ = make_captioner()
    encoder = model.image_encoder
    model = model.clone(image_encoder=encoder.clone(backbone=encoder.backbone.clone(norm_group_size=2)))
    optimizer, _ = make_optimizer(config.optimizer, variables["params"], 10)
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.integers(0, 255, (ROWS, 32, 32, 3)).astype(np.uint8),
        "tokens": rng.integers(4, 12, (ROWS, 2, 6)).astype(np.int32),
        "mask": IMAGE_IDS >= 0,
        "index": np.arange(ROWS, dtype=np.int32),
    }
    results = []
    for devices in (1, 8):
        mesh = make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])
        update = make_joint_step(model, optimizer, RunSpec.from_config(config), frozenset(), mesh)
        state = jax.device_put(create_state(variables, optimizer, averaged=False), replicated(mesh))
        lowered = jax.jit(update).lower(state, put_batch(batch, mesh))
        compiled = lowered.compile(QUICK_COMPILATION)
        collectives = compute_stats(lowered, compiled, mesh, ROWS // devices)["collectives"]
        gathered = sum(group["gathered"] for group in collectives if group["kind"] == "all-gather")
        minimum = 4 * ROWS * (WIDTH + 2 * WIDTH) * (devices // 8)  # bytes of one image and two text vectors per row
        assert minimum <= gathered <= 1.5 * minimum
        state, metrics = compiled(state, put_batch(batch, mesh))
        results.append(jax.device_get((metrics, state.params)))
    (metrics, params), (other_metrics, other_params) = results
    assert metrics.keys() >= {"contrastive_loss", "temperature", "image_to_text_accuracy", "text_to_image_accuracy"}
    for name in metrics:
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)
    initial = flatten(variables["params"])
    for path, value in flatten(params).items():
        np.testing.assert_allclose(flatten(other_params)[path], value, rtol=0, atol=1e-5, err_msg=path)
    for path in ("text_encoder/dense/kernel", "joint_embedding/image/kernel", "joint_embedding/log_scale"):
        assert np.abs(flatten(params)[path] - np.asarray(initial[path])).max() > 1e-4, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern", ["text_encoder/.*", r"text_encoder/roberta/(embeddings|encoder/layer/0/attention)/.*"]
)
def test_rules_freeze_the_text_encoder_or_part_of_it(pattern):
    config = default_config()
    shrink(config)
    config.dtype = "float32"
    config.optimizer.warmup_steps = 100
    config.optimizer.rules = ((pattern, {"lr": 0.0}), (rf"(?!{pattern}).*", {"lr": 1.0}))
    model, variables, _, tokens = make_captioner()
    optimizer, _ = make_optimizer(config.optimizer, variables["params"], 10)
    ((_, frozen),) = phases(variables["params"], config.optimizer.rules)
    mesh = make_mesh(ConfigDict({"data": 1, "model": 1}), jax.devices()[:1])
    update = make_joint_step(model, optimizer, RunSpec.from_config(config), frozen, mesh)
    batch = {
        "image": np.random.default_rng(1).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8),
        "tokens": tokens,
        "mask": np.ones(4, bool),
        "index": np.arange(4, dtype=np.int32),
    }
    state = create_state(variables, optimizer, averaged=False)
    after = flatten(jax.jit(update, compiler_options=QUICK_COMPILATION)(state, batch)[0].params)
    before = flatten(variables["params"])
    trained = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not trained & frozen and {path for path in before if re.fullmatch(pattern, path)} == frozen
    text_encoder = {path for path in before if path.startswith("text_encoder/")}
    assert bool(trained & text_encoder) == (not text_encoder <= frozen)
    assert "joint_embedding/text/kernel" in trained and any(path.startswith("image_encoder/") for path in trained)
