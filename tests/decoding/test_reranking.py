"""Reranking of candidates by score and similarity, compared with NumPy and across devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_run import shrink
from tiny_captioner import MODEL, make_random_captioner

from caption_jax.config import default_config
from caption_jax.decoding import Decoded, decode, rerank
from caption_jax.models.build import build_model, roberta_settings
from caption_jax.models.image_encoder import ImageFeatures
from caption_jax.specs import DecodeSpec, ModelSpec, build_spec
from input_pipeline.special_tokens import PAD

IMAGES, VOCABULARY_SIZE, LENGTH, WIDTH, MEMORY_LENGTH = 8, 9, 6, 16, 3
FULL_IDS = np.array([0, 1, 2, 3, 17, 6, 14, 11, 5], np.int32)  # token ids in the vocabulary of the text encoder
BEAM = {"method": "beam", "num_beams": 4, "alpha": 0.6, "max_length": LENGTH}


def to_text_ids(tokens):
    return jnp.asarray(FULL_IDS)[tokens]


@functools.cache
def make_captioner():
    """Returns a model with a text encoder, randomly initialised variables, and random image features."""
    config = default_config()
    shrink(config)
    config.model.text_encoder.update({"layers": 1, "width": 8, "heads": 2, "feed_forward": 8})
    config.model.joint_embedding.width = 8
    text_encoder = roberta_settings(config.model.text_encoder, 20, LENGTH, PAD)
    model = build_model(build_spec(ModelSpec, config.model), VOCABULARY_SIZE, LENGTH, text_encoder=text_encoder)
    tokens = jax.ShapeDtypeStruct((1, 1, LENGTH - 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), tokens)
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return (0.7 * rng.normal(size=shape)).astype(np.float32)

    variables = {"params": jax.tree.map(lambda leaf: normal(leaf.shape), shapes["params"])}
    return model, variables, ImageFeatures(normal((IMAGES, MEMORY_LENGTH, WIDTH)), normal((IMAGES, WIDTH)))


def run_decode(settings, **options) -> Decoded:
    model, variables, features = make_captioner()
    decoder = jax.jit(lambda v, f: decode(model, v, f, DecodeSpec(**settings), text_ids=to_text_ids, **options))
    return jax.device_get(decoder(variables, features))


@functools.cache
def decode_all_candidates() -> Decoded:
    """Returns all beams in the order of beam search."""
    return run_decode({**BEAM, "candidates": 4}, return_attention=True)


@functools.cache
def decode_and_rerank() -> Decoded:
    """Returns the two best candidates after reranking."""
    return run_decode({**BEAM, "candidates": 2, "rerank_weight": 8.0}, return_attention=True)


def compute_similarities(tokens) -> np.ndarray:
    """Computes the cosine similarities of candidates and images in NumPy from the outputs of RoBERTa."""
    model, variables, features = make_captioner()
    captions = FULL_IDS[np.pad(tokens.reshape(-1, tokens.shape[-1]), ((0, 0), (1, 0)))]
    hidden = jax.jit(lambda ids: model.apply(variables, ids, ids != 1, method="encode_texts").tokens)(captions)
    dense, embedding = variables["params"]["text_encoder"]["dense"], variables["params"]["joint_embedding"]
    similarities = np.zeros(tokens.shape[:2])
    for row, (image, candidate) in enumerate(np.ndindex(*similarities.shape)):
        mean = np.asarray(hidden[row])[captions[row] != 1].mean(0) @ dense["kernel"] + dense["bias"]
        text_vector = mean @ embedding["text"]["kernel"]
        image_vector = features.vector[image] @ embedding["image"]["kernel"]
        norms = np.linalg.norm(text_vector) * np.linalg.norm(image_vector)
        similarities[image, candidate] = text_vector @ image_vector / norms
    return similarities


def test_reranking_matches_sorting():
    rng = np.random.default_rng(1)
    scores, similarity = rng.normal(size=(2, 5, 6)).astype(np.float32)
    scores[0, 2] = scores[1, :] = -np.inf
    scores[2, 1], similarity[2, 1] = scores[2, 4], similarity[2, 4]  # in a tie, the earlier candidate wins
    tokens = np.arange(5 * 6 * 3).reshape(5, 6, 3)
    actual = rerank(Decoded(tokens, -np.ones((5, 6, 3)), scores), similarity, 1.5, 4)
    for image in range(5):
        total = [score + 1.5 * cosine for score, cosine in zip(scores[image], similarity[image], strict=True)]
        order = sorted(range(6), key=lambda c: (-total[c], c))[:4]
        np.testing.assert_array_equal(actual.all_tokens[image], tokens[image, order])
        np.testing.assert_allclose(actual.all_scores[image], np.array(total)[order], rtol=1e-6)
    assert np.isneginf(actual.all_log_probs[1]).all()


def test_beams_are_reranked_by_score_and_similarity():
    candidates = decode_all_candidates()
    similarities = compute_similarities(candidates.all_tokens)
    total = candidates.all_scores + 8.0 * similarities
    order = np.argsort(-total, axis=1)[:, :2]
    actual = decode_and_rerank()
    images = np.arange(IMAGES)[:, None]
    np.testing.assert_array_equal(actual.all_tokens, candidates.all_tokens[images, order])
    np.testing.assert_allclose(actual.all_scores, total[images, order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual.all_attention, candidates.all_attention[images, order], atol=1e-6)
    np.testing.assert_allclose(actual.log_prob, candidates.all_log_probs[images[:, 0], order[:, 0]], atol=1e-5)
    assert 0 < (order[:, 0] > 0).sum() < IMAGES, "both terms must affect the order"
    most_similar = rerank(candidates, similarities, 1e6, 1).tokens
    np.testing.assert_array_equal(most_similar, candidates.all_tokens[images[:, 0], similarities.argmax(1)])
    np.testing.assert_array_equal(rerank(candidates, similarities, 0.0, 4).all_tokens, candidates.all_tokens)


def test_samples_are_reranked_by_log_probability_and_similarity():
    settings = {"method": "sample", "num_samples": 5, "max_length": LENGTH}
    samples, actual = run_decode(settings), run_decode({**settings, "rerank_weight": 3.0})
    total = np.asarray(samples.all_log_probs) + 3.0 * compute_similarities(samples.all_tokens)
    order = np.argsort(-total, axis=1)
    np.testing.assert_array_equal(actual.all_tokens, samples.all_tokens[np.arange(IMAGES)[:, None], order])


def test_reranking_on_eight_devices_matches_one_device():
    model, variables, features = make_captioner()
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_image, replicated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    settings = {**BEAM, "candidates": 2, "rerank_weight": 8.0}
    decoder = jax.jit(
        lambda v, f: decode(model, v, f, DecodeSpec(**settings), text_ids=to_text_ids),
        in_shardings=(replicated, by_image),
        out_shardings=replicated,
    )
    sharded, single = decoder(variables, features), decode_and_rerank()
    np.testing.assert_array_equal(sharded.tokens, single.tokens)
    np.testing.assert_allclose(sharded.score, single.score, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "greedy"}, r'config\.decode\.method="greedy" yields only one'),
        ({"method": "beam", "num_beams": 1}, "num_beams=1 yields only one"),
        ({"method": "sample"}, "num_samples=1 yields only one"),
        ({"method": "beam", "num_beams": 3, "candidates": 4}, r"must not exceed config\.decode\.num_beams=3"),
        ({"method": "beam", "rerank_weight": -1.0}, "0 .* or more"),
    ],
)
def test_invalid_reranking_settings_are_rejected(settings, message):
    model, variables, features = make_captioner()
    with pytest.raises(ValueError, match=message):
        decode(model, variables, features, DecodeSpec(**{"rerank_weight": 1.0, **settings}), text_ids=to_text_ids)


def test_reranking_requires_a_joint_embedding():
    settings = {"method": "beam", "rerank_weight": 1.0}
    variables, memory = make_random_captioner(0)
    for model, ids in ((MODEL, to_text_ids), (make_captioner()[0], None)):
        with pytest.raises(ValueError, match=r"config\.objective\.contrastive_weight above 0"):
            decode(model, variables, memory, DecodeSpec(**settings), text_ids=ids)


def test_an_ensemble_is_reranked_with_the_joint_embedding_of_its_first_model():
    model, variables, features = make_captioner()
    settings = DecodeSpec(**BEAM, rerank_weight=10.0)
    decoder = jax.jit(lambda v, f: decode([model] * 2, [v] * 2, [f] * 2, settings, text_ids=to_text_ids))
    single, ensemble = run_decode({**BEAM, "rerank_weight": 10.0}), decoder(variables, features)
    np.testing.assert_array_equal(ensemble.tokens, single.tokens)
    np.testing.assert_allclose(ensemble.score, single.score, atol=1e-4)
