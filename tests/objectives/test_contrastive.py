"""The contrastive objective: what it costs, what takes part in it, and that it stays out of the decoder."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_run import shrink

from caption_jax.config import default_config
from caption_jax.models.build import build_model, roberta_sizes
from caption_jax.objectives.contrastive import Contrastive, Vectors, contrastive_loss, joint_vectors
from caption_jax.objectives.forward_pass import ForwardPass
from caption_jax.objectives.total_objective import objectives_of
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

# Compiled for the sake of a few runs.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}
GATHERED = re.compile(r"= \w+\[([\d,]+)\]\S* all-gather(?:-start)?\(")  # shapes, in a compiled program
ROWS, CAPTIONS, WIDTH, SCALE = 16, 3, 8, 20.0
OWNER = np.arange(ROWS, dtype=np.int32)
OWNER[5] = 2  # an image that is in the batch twice
OWNER[[7, 11]] = -1  # rows that take no part


def vectors(seed: int = 0, captions: int = CAPTIONS) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts with something in common."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(ROWS, WIDTH))
    texts = images[:, None] + 1.5 * random.normal(size=(ROWS, captions, WIDTH))
    unit = [array / np.linalg.norm(array, axis=-1, keepdims=True) for array in (images, texts)]
    return unit[0].astype(np.float32), unit[1].astype(np.float32)


def plain_loss(images, texts, owner, scale) -> tuple[float, float, float]:
    """The definition, pair by pair."""
    losses, image_right, text_right = [], [], []
    for i in np.flatnonzero(owner >= 0):
        others = [j for j in np.flatnonzero(owner >= 0) if owner[j] != owner[i]]
        other_texts = [scale * images[i] @ text for j in others for text in texts[j]]
        image_right.append(max(scale * images[i] @ text for text in texts[i]) > max(other_texts))
        for text in texts[i]:
            own = scale * images[i] @ text
            other_images = [scale * images[j] @ text for j in others]
            text_right.append(own > max(other_images))
            for negatives in (other_texts, other_images):
                losses.append(-np.log(np.exp(own) / (np.exp(own) + np.exp(negatives).sum())))
    return np.mean(losses), np.mean(image_right), np.mean(text_right)


def test_loss_and_accuracies_are_those_of_the_definition():
    images, texts = vectors()
    loss, *accuracies = (ratio.mean() for ratio in jax.jit(contrastive_loss)(Vectors(images, texts, SCALE), OWNER))
    expected = plain_loss(images.astype(np.float64), texts.astype(np.float64), OWNER, SCALE)
    np.testing.assert_allclose([loss, *accuracies], expected, rtol=1e-5)
    assert all(0.2 < accuracy < 1 for accuracy in accuracies)


def test_with_one_caption_an_image_it_is_clips_loss():
    images, texts = vectors(captions=1)
    logits = SCALE * images @ texts[:, 0].T
    diagonal = [-np.diag(jax.nn.log_softmax(logits, axis)).mean() for axis in (0, 1)]
    found = contrastive_loss(Vectors(images, texts, SCALE), np.arange(ROWS)).loss.mean()
    assert float(found) == pytest.approx(np.mean(diagonal), rel=1e-5)


@functools.cache
def gradients_of(devices: int):
    """Loss and gradients with respect to images, texts and scale, compiled for so many devices."""
    mesh = make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])

    def loss(images, texts, scale, owner):
        return contrastive_loss(Vectors(images, texts, scale), owner, mesh).loss.mean()

    images, texts = vectors()
    batch = put_batch({"images": images, "texts": texts, "owner": OWNER}, mesh)
    scale = jax.device_put(jnp.float32(SCALE), replicated(mesh))
    arguments = (batch["images"], batch["texts"], scale, batch["owner"])
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*arguments).compile()
    return compiled, jax.device_get(compiled(*arguments))


def test_eight_devices_compute_what_one_does():
    (_, (loss, gradients)), (_, (other_loss, other_gradients)) = gradients_of(1), gradients_of(8)
    assert other_loss == pytest.approx(loss, abs=1e-5)
    for one, other in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)
        assert np.abs(one).max() > 1e-3


def test_each_side_is_gathered_once():
    gathered = GATHERED.findall(gradients_of(8)[0].as_text())
    assert sorted(gathered) == sorted([f"{ROWS},{WIDTH}", f"{ROWS},{CAPTIONS},{WIDTH}", f"{ROWS}"])


def test_rows_without_part_change_nothing_and_get_no_gradient():
    images, texts = vectors()
    gradient = jax.jit(
        jax.value_and_grad(lambda i, t: contrastive_loss(Vectors(i, t, SCALE), OWNER).loss.mean(), (0, 1))
    )
    loss, found = gradient(images, texts)
    others = vectors(seed=1)
    idle = OWNER < 0
    changed = [
        np.where(idle.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip((images, texts), others, strict=True)
    ]
    other_loss, other_found = gradient(*changed)
    assert float(other_loss) == float(loss)
    for one, other in zip(found, other_found, strict=True):
        assert not np.asarray(one)[idle].any() and np.asarray(one)[~idle].any()
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("owner", [np.where(OWNER == 0, 0, -1), np.zeros(ROWS, np.int32)])
def test_rows_of_one_image_have_nothing_to_be_told_from(owner):
    images, texts = vectors()
    gradient = jax.jit(
        jax.value_and_grad(lambda i, t: contrastive_loss(Vectors(i, t, SCALE), owner).loss.mean(), (0, 1))
    )
    loss, found = gradient(images, texts)
    assert float(loss) == 0 and not any(np.asarray(side).any() for side in found)


class FakeVocabulary:
    """Twice as many full ids as compact ones."""

    size = 12

    def to_full(self, ids):
        return 2 * np.asarray(ids)


@functools.cache
def small_captioner():
    """A model with a text encoder, random variables, images and captions."""
    config = default_config()
    shrink(config)
    config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    config.model.shared_space.width = WIDTH
    model = build_model(
        build_spec(ModelSpec, config.model), 12, 6, text_encoder=roberta_sizes(config.model.text_encoder, 12, 6, PAD)
    )
    random = np.random.default_rng(0)
    images = random.normal(size=(4, 32, 32, 3)).astype(np.float32)
    tokens = random.integers(4, 12, size=(4, 2, 6)).astype(np.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
    variables = jax.tree.map(lambda a: jnp.asarray(0.3 * random.normal(size=a.shape), a.dtype), dict(shapes))
    variables["batch_stats"] = jax.tree.map(jnp.ones_like, variables["batch_stats"])
    return model, variables, images, tokens


def test_what_the_text_encoder_reads_does_not_reach_the_decoder():
    model, variables, images, tokens = small_captioner()
    batch = {"tokens": tokens, "mask": np.ones(len(tokens), bool)}

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(params, shift):
        """The text encoder reads other texts than the captions of the batch."""

        def outputs(model):
            forward = ForwardPass(model, images, batch, text_ids=lambda tokens: (tokens + shift) % FakeVocabulary.size)
            return forward.decoded.logits, joint_vectors(model, forward, tokens)

        return model.apply(
            {**variables, "params": params},
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
            method=outputs,
        )[0]

    params = variables["params"]
    logits, found = run(params, 0)
    other_logits, other = run(params, 5)
    np.testing.assert_array_equal(logits, other_logits)
    np.testing.assert_array_equal(found.images, other.images)
    assert np.abs(np.asarray(found.texts - other.texts)).max(-1).min() > 1e-4, "the text encoder did read them"
    broken = {**params, "text_encoder": jax.tree.map(lambda a: a + 1, params["text_encoder"])}
    np.testing.assert_array_equal(run(broken, 0)[0], logits)


def test_captions_reach_a_roberta_in_its_own_ids():
    tokens = np.array([[0, 5, 11, 2, 1]])
    np.testing.assert_array_equal(TextTokenizer(FakeVocabulary(), True, 6).from_caption_ids(tokens), 2 * tokens)
    np.testing.assert_array_equal(TextTokenizer(FakeVocabulary(), False, 6).from_caption_ids(tokens), tokens)


def joint_step(model, optimizer, spec: RunSpec, frozen: frozenset[str], mesh) -> TrainStep:
    """The step of a run that minimises the captions' loss and the contrastive one."""
    objectives = {**objectives_of(spec.objective, joint_embedding=False), "contrastive": Contrastive(1.0)}
    text_ids = TextTokenizer(FakeVocabulary(), False, 6).from_caption_ids
    return TrainStep(model, optimizer, Preprocessing(32), spec, frozen, objectives, text_ids, mesh)


@pytest.mark.slow
def test_a_whole_step_is_the_same_on_eight_devices():
    """Plain gradient steps, so that parameters differ as gradients do."""
    config = default_config()
    shrink(config)
    config.dtype = "float32"
    config.optimizer.update({"name": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 0.0})
    model, variables, _, _ = small_captioner()
    encoder = model.image_encoder
    model = model.clone(image_encoder=encoder.clone(backbone=encoder.backbone.clone(norm_group_size=2)))
    optimizer, _ = make_optimizer(config.optimizer, variables["params"], 10)
    random = np.random.default_rng(1)
    batch = {
        "image": random.integers(0, 255, (ROWS, 32, 32, 3)).astype(np.uint8),
        "tokens": random.integers(4, 12, (ROWS, 2, 6)).astype(np.int32),
        "mask": OWNER >= 0,
        "index": np.arange(ROWS, dtype=np.int32),
    }
    ends = []
    for devices in (1, 8):
        mesh = make_mesh(ConfigDict({"data": devices, "model": 1}), jax.devices()[:devices])
        update = joint_step(model, optimizer, RunSpec.from_config(config), frozenset(), mesh)
        state = jax.device_put(create_state(variables, optimizer, averaged=False), replicated(mesh))
        compiled = jax.jit(update).lower(state, put_batch(batch, mesh)).compile(QUICKLY)
        gathered = GATHERED.findall(compiled.as_text())
        assert [gathered.count(shape) for shape in (f"{ROWS},{WIDTH}", f"{ROWS},2,{WIDTH}")] == [devices // 8] * 2
        state, metrics = compiled(state, put_batch(batch, mesh))
        ends.append(jax.device_get((metrics, state.params)))
    (metrics, params), (other_metrics, other_params) = ends
    assert metrics.keys() >= {"contrastive_loss", "temperature", "image_to_text_accuracy", "text_to_image_accuracy"}
    for name in metrics:
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-5, atol=1e-5, err_msg=name)
    start = flatten(variables["params"])
    for path, value in flatten(params).items():
        np.testing.assert_allclose(flatten(other_params)[path], value, rtol=0, atol=1e-5, err_msg=path)
    for part in ("text_encoder/dense/kernel", "shared_space/image/kernel", "shared_space/log_scale"):
        assert np.abs(flatten(params)[part] - np.asarray(start[part])).max() > 1e-4, part


@pytest.mark.slow
@pytest.mark.parametrize("part", ["text_encoder/.*", r"text_encoder/roberta/(embeddings|encoder/layer/0/attention)/.*"])
def test_rules_freeze_the_text_tower_as_a_whole_or_in_part(part):
    config = default_config()
    shrink(config)
    config.dtype = "float32"
    config.optimizer.rules = ((part, {"lr": 0.0}), (rf"(?!{part}).*", {"lr": 1.0}))
    model, variables, _, tokens = small_captioner()
    optimizer, _ = make_optimizer(config.optimizer, variables["params"], 10)
    ((_, frozen),) = phases(variables["params"], config.optimizer.rules)
    mesh = make_mesh(ConfigDict({"data": 1, "model": 1}), jax.devices()[:1])
    update = joint_step(model, optimizer, RunSpec.from_config(config), frozen, mesh)
    batch = {
        "image": np.random.default_rng(1).integers(0, 255, (4, 32, 32, 3)).astype(np.uint8),
        "tokens": tokens,
        "mask": np.ones(4, bool),
        "index": np.arange(4, dtype=np.int32),
    }
    state = create_state(variables, optimizer, averaged=False)
    after = flatten(jax.jit(update, compiler_options=QUICKLY)(state, batch)[0].params)
    before = flatten(variables["params"])
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert not moved & frozen and {path for path in before if re.fullmatch(part, path)} == frozen
    text = {path for path in before if path.startswith("text_encoder/")}
    assert bool(moved & text) == (not text <= frozen)
    assert "shared_space/text/kernel" in moved and any(path.startswith("image_encoder/") for path in moved)
