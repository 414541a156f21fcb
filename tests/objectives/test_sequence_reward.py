"""Training on the rewards of sampled captions: the gradient, advantages, several devices, and resuming."""

from __future__ import annotations

import itertools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from gradient_step import GRADIENT, assert_same, make_batch, make_step
from resume_run import assert_same_state, list_saved_steps
from reward_captions import make_split
from tiny_captioner import LENGTH, MODEL, VOCABULARY_SIZE, make_random_captioner, pad_caption

from caption_jax.errors import ConfigError
from caption_jax.objectives.sequence_reward import (
    SequenceReward,
    compute_advantages,
    compute_similarity,
    find_caption_tokens,
    find_distinct,
)
from caption_jax.rewards.caption_rewards import score_captions
from caption_jax.rewards.reward_tables import RewardTables
from caption_jax.specs import RunSpec
from caption_jax.training.loop import train_and_evaluate
from input_pipeline.special_tokens import BOS, EOS, PAD
from input_pipeline.tokenizer import Tokenizer, Vocabulary

NAME = "caption_jax.objectives.sequence_reward:SequenceReward"
BATCH = {"index": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1, bool)}
REPEATS = 60


def make_two_word_tables(objective: SequenceReward) -> dict:
    """Returns the constants for images with captions of the words "a" (token 4) and "dog" (token 5)."""
    split = make_split([("a dog", "a a dog"), ("a",), ("dog dog",)])
    tokenizer = Tokenizer.train(split.captions, 270)
    words = [i for i in range(tokenizer.size) if tokenizer.id_to_token(i) in ("\u0120a", "\u0120dog")]
    vocabulary = Vocabulary(tokenizer, words)
    assert vocabulary.size == VOCABULARY_SIZE
    return objective.prepare(split, vocabulary)


def compute_exact_gradient(objective: SequenceReward, constants: dict, params: dict, memory: np.ndarray) -> dict:
    """Returns the gradient of the expected reward, the sum over all captions of probability times reward."""
    others = [token for token in range(VOCABULARY_SIZE) if token != EOS]
    captions = [(*words, EOS) for count in range(LENGTH) for words in itertools.product(others, repeat=count)]
    captions += itertools.product(others, repeat=LENGTH)
    tokens = jnp.array([[pad_caption(caption) for caption in captions]])
    tables = RewardTables.from_dict(jax.tree.map(jnp.asarray, constants))
    scored = score_captions(tokens, BATCH["index"], tables, ["cider_d"])
    rewards = objective.cider_d * scored.metrics["cider_d"] + objective.length * scored.words
    inputs = jnp.concatenate([jnp.full_like(tokens[..., :1], BOS), tokens[..., :-1]], axis=-1)

    @jax.jit
    def compute_expected_reward(params):
        logits = MODEL.apply({"params": params}, inputs, memory, method="decode").logits / objective.temperature
        token_log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
        probabilities = jnp.exp((token_log_probs * find_caption_tokens(tokens)).sum(-1))
        return (probabilities * rewards).sum(), probabilities.sum()

    gradient, total = jax.grad(compute_expected_reward, has_aux=True)(params)
    assert total == pytest.approx(1, abs=1e-4)
    return gradient


@pytest.mark.parametrize(
    ("baseline", "temperature"),
    [
        ("mean", 1.0),
        pytest.param("greedy", 1.0, marks=pytest.mark.slow),
        pytest.param("mean", 1.5, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_gradient_is_that_of_the_expected_reward_within_sampling_error(baseline, temperature):
    objective = SequenceReward(samples=128, baseline=baseline, temperature=temperature, length=0.3)
    constants = make_two_word_tables(objective)
    variables, memory = make_random_captioner(seed=0, images=1)
    params = variables["params"]
    forward = SimpleNamespace(memory=memory, shards=1)

    def compute_loss(params, key):
        output = MODEL.apply(
            {"params": params}, method=lambda model: objective(model, forward, BATCH, jax_constants, key)
        )
        return output.losses["loss"].mean()

    jax_constants = jax.tree.map(jnp.asarray, constants)
    keys = jax.random.split(jax.random.key(1), REPEATS)
    estimate = jax.jit(lambda params, keys: jax.lax.map(lambda key: jax.grad(compute_loss)(params, key), keys))
    estimates = -np.concatenate(
        [leaf.reshape(REPEATS, -1) for leaf in jax.tree.leaves(jax.device_get(estimate(params, keys)))], axis=1
    ).astype(np.float64)
    gradient = compute_exact_gradient(objective, constants, params, memory)
    exact = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    variance_of_mean = estimates.var(0, ddof=1) / REPEATS
    assert variance_of_mean.sum() < 0.02 * np.square(exact).sum()  # otherwise, this test could not fail
    assert np.square(estimates.mean(0) - exact).sum() < 4 * variance_of_mean.sum()
    along = estimates @ exact / np.square(exact).sum()  # 1 on average
    assert abs(along.mean() - 1) < 4 * along.std(ddof=1) / np.sqrt(REPEATS)


def test_advantages_are_differences_from_what_does_not_depend_on_the_sample():
    rewards = jnp.array([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]])
    others = compute_advantages(rewards, None, normalised=False)
    np.testing.assert_allclose(others, [[-3, -1.5, 4.5], [0, 0, 0]], atol=1e-6)
    greedy = compute_advantages(rewards, jnp.array([[2.0], [4.0]]), normalised=False)
    np.testing.assert_allclose(greedy, [[-1, 0, 4], [-1, -1, -1]], atol=1e-6)
    normalised = compute_advantages(rewards, None, normalised=True)
    np.testing.assert_allclose(normalised[0] * np.std([1, 2, 6]), others[0], rtol=1e-3)
    assert not normalised[1].any()


def test_tokens_of_captions_and_repeated_samples():
    tokens = jnp.array([[[4, EOS, PAD], [4, 5, 4], [4, EOS, PAD], [4, 5, 4]]])
    assert find_caption_tokens(tokens)[0].tolist() == [[True, True, False], [True] * 3] * 2
    assert find_distinct(tokens).tolist() == [[True, True, False, False]]


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_eight_devices_compute_the_same_update_as_one():
    batch = make_batch()
    expected = make_step("reward")(batch)
    assert_same(make_step("reward", devices=8)(batch), expected)
    assert expected["reward/reward"] > 0 and np.abs(expected[f"{GRADIENT}decoder/embedding"]).max() > 1e-3
    assert -1 <= expected["reward/similarity"] <= 1
    assert {"reward/greedy_reward", "reward/words", "reward/function_word_endings", "reward/finished"} <= set(expected)


def test_similarity_ignores_what_follows_the_end_and_has_no_gradient():
    class Model:
        joint_embedding = True

        def embed_images(self, features):
            return features

        def embed_texts(self, ids, mask):
            sums = jnp.where(mask, ids, 0).sum(-1).astype(jnp.float32)  # 2 for </s>, 0 for <s>
            return jnp.stack([jnp.cos(sums), jnp.sin(sums)], -1)

    def compute(images):
        tokens = jnp.array([[[4, EOS, 5, 5], [4, 5, 4, 4]]])
        forward = SimpleNamespace(text_ids=lambda ids: ids, image_features=images)
        return compute_similarity(Model(), forward, tokens)

    images = jnp.array([[1.0, 0.0]])
    np.testing.assert_allclose(compute(images), [[np.cos(4 + EOS), np.cos(17)]], atol=1e-6)
    assert not jax.grad(lambda images: compute(images).sum())(images).any()


def test_similarity_requires_a_joint_embedding():
    with pytest.raises(ConfigError, match=r"SequenceReward.similarity requires .*config.objective.contrastive_weight"):
        compute_similarity(SimpleNamespace(joint_embedding=None), None, jnp.zeros((1, 1, 2), jnp.int32))


@pytest.mark.slow
def test_unreadable_images_have_no_effect():
    batch = make_batch()
    changed = {**batch, "index": batch["index"].copy()}
    changed["index"][~batch["mask"]] = -1
    step = make_step("reward")
    assert_same(step(changed), step(batch))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": 1}, "SequenceReward.samples is 1, so a sample has no others"),
        ({"samples": 1, "baseline": "greedy", "advantages": "normalised"}, "set samples to at least 2"),
        ({"baseline": "median"}, "SequenceReward.baseline is 'median'; it must be 'mean' or 'greedy'"),
        ({"temperature": 0.0}, "SequenceReward.temperature is 0.0; it must be in"),
        ({"cider_d": 0.0}, "all weights of SequenceReward are 0"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(ConfigError, match=message):
        SequenceReward(**fields)


def make_run_config(images, **changes):
    config = small_run.get_config().unlock()
    config.data.root = str(images)
    config.objective.caption_weight = 0.2
    config.objective.terms = {"reward": {"name": NAME, "samples": 3, "function_word_ending": 0.5}}
    config.update_from_flattened_dict(
        {"train.log_every": 1, "train.checkpoint_every": 3, "model.decoder.dropout": 0.2, **changes}
    )
    return config


@pytest.mark.slow
def test_an_interrupted_run_resumes_bit_for_bit(small_images, tmp_path):
    changes = {"train.steps": 6, "train.eval_every": 6, "optimizer.grad_accum_steps": 2}
    spec = RunSpec.from_config(make_run_config(small_images, **changes))
    train_and_evaluate(spec, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "last" / str(list_saved_steps(tmp_path / "resumed")[-1]))
    train_and_evaluate(spec, tmp_path / "resumed")
    assert_same_state(tmp_path / "resumed", tmp_path / "whole")
