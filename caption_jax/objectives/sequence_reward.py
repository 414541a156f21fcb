"""Training on the metrics of sampled captions (self-critical sequence training, Rennie et al. 2017).

This extension objective is enabled in the config by its import path, usually in a run that starts from the weights of a
run with cross-entropy alone (`config.init_from`), at a third to a tenth of its learning rate:

    config.objective.caption_weight = 0.1
    config.objective.terms = {
        "reward": {"name": "caption_jax.objectives.sequence_reward:SequenceReward", "samples": 5, "cider_d": 1.0}
    }

The captions are sampled, scored and differentiated in the jitted step. Nothing is transferred to the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.sampling import sample
from caption_jax.errors import ConfigError
from caption_jax.objectives.objective import Batch, Objective, ObjectiveOutput, PyTree, Ratio
from caption_jax.rewards.caption_rewards import METRICS, CaptionRewards, score_captions
from caption_jax.rewards.reward_tables import RewardTables, assume_reward_tables, build_reward_tables
from input_pipeline.spec_checks import at_least, check_fields, interval, one_of
from input_pipeline.special_tokens import BOS, EOS, PAD

if TYPE_CHECKING:
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.objectives.forward_pass import ForwardPass
    from input_pipeline.records import Split
    from input_pipeline.tokenizer import Vocabulary

_MIN_DEVIATION = 1e-3  # of the rewards of an image; if all its samples are the same, they have no advantage


@dataclass(frozen=True)
class SequenceReward(Objective):
    """Maximises the expected reward of captions that are sampled from the model.

    The loss of a sample is its negative log-probability times its advantage, the reward minus a baseline. Its gradient
    is an unbiased estimate of the gradient of the negative expected reward, if captions are sampled without `top_k` and
    `top_p` and advantages are not normalised. The image encoder runs once, in training mode, for this objective and the
    cross-entropy, and the decoder runs again over the samples, with teacher forcing. Samples are drawn without dropout
    in the decoder.

    Reports `loss`, `reward` (the mean of all samples), the metrics of the samples that have a weight, and properties
    that show the known ways in which such training fails: `words` per caption, `function_word_endings`, `finished`
    (captions with </s>) and `distinct` (samples that differ from all earlier samples of the image), all as fractions
    or means over samples. `greedy_reward` is reported if the baseline is greedy decoding.

    Attributes:
        weight: weight of this objective in the total loss; `config.objective.caption_weight` is that of the
            cross-entropy.
        samples: number of captions sampled per image.
        baseline: "mean", the mean reward of the other samples of the image (Luo 2020,
            https://arxiv.org/abs/2003.09971), or "greedy", the reward of the caption from greedy decoding (Rennie et
            al. 2017, https://arxiv.org/abs/1612.00563).
        advantages: "plain", or "normalised" to divide them by the standard deviation of the rewards of the image.
        temperature: divisor of the logits, for sampling and for the gradient.
        top_k: sample from this number of most probable tokens; 0 for no limit.
        top_p: sample from the most probable tokens of this total probability; 1 for no limit.
        dropout: whether the decoder has dropout in the pass that computes the gradient.
        include_end: whether </s> counts as a word of captions and references. Otherwise captions lose their endings.
        cider_d: weight of CIDEr-D in the reward, from 0 to 10. Its document frequencies are those of the references of
            the training images.
        bleu_4: weight of BLEU-4 of single captions, from 0 to 1.
        rouge_l: weight of ROUGE-L, from 0 to 1.
        similarity: weight of the cosine of the angle between the vectors of the image and the caption in the model's
            own joint embedding, from -1 to 1. Requires `config.objective.contrastive_weight`, whose loss trains the
            embedding.
        length: reward per word.
        function_word_ending: penalty on captions that end in a function word, such as "a" or "with".
    """

    weight: float = 1.0
    samples: int = 5
    baseline: str = "mean"
    advantages: str = "plain"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    dropout: bool = False
    include_end: bool = True
    cider_d: float = 1.0
    bleu_4: float = 0.0
    rouge_l: float = 0.0
    similarity: float = 0.0
    length: float = 0.0
    function_word_ending: float = 0.0

    batch_fields: ClassVar[tuple[str, ...]] = ("tokens", "mask", "index")

    def __post_init__(self):
        check_fields(
            self,
            "SequenceReward",
            weight=interval("(0, inf)"),
            samples=at_least(1),
            baseline=one_of("mean", "greedy"),
            advantages=one_of("plain", "normalised"),
            temperature=interval("(0, inf)"),
            top_k=at_least(0, "for no limit"),
            top_p=interval("(0, 1]", "1 for no limit"),
            function_word_ending=at_least(0, "for no penalty"),
        )
        if self.samples < 2 and (self.baseline == "mean" or self.advantages == "normalised"):
            raise ConfigError(
                f"SequenceReward.samples is {self.samples}, so a sample has no others to compare it with: set "
                'samples to at least 2, or baseline to "greedy" and advantages to "plain"'
            )
        if not any((*self._metrics.values(), self.similarity, self.length, self.function_word_ending)):
            raise ConfigError("all weights of SequenceReward are 0; set at least one, such as cider_d=1.0")

    @property
    def _metrics(self) -> dict[str, float]:
        """Weights of the metrics, by name, without zeros."""
        weights = {name: getattr(self, name) for name in METRICS}
        return {name: weight for name, weight in weights.items() if weight}

    def prepare(self, train: Split, vocabulary: Vocabulary) -> PyTree:
        """Returns the tables of references and document frequencies; see `build_reward_tables`."""
        return build_reward_tables(train, vocabulary, include_end=self.include_end).to_dict()

    def assume_constants(self, images: int, captions: int, vocabulary_size: int) -> PyTree:
        """Returns the typical shapes of the tables; see `assume_reward_tables`."""
        return assume_reward_tables(images, captions, vocabulary_size).to_dict()

    def __call__(
        self, model: ImageCaptioningModel, forward: ForwardPass, batch: Batch, constants: PyTree, key: jax.Array
    ) -> ObjectiveOutput:
        """Samples captions, scores them, and computes the loss of a second pass over them."""
        tables, mask = RewardTables.from_dict(constants), batch["mask"]
        tokens, greedy_tokens = self._generate(model, forward, key)
        samples = self._score(model, forward, tokens, batch, tables)
        baseline = None
        if self.baseline == "greedy":
            baseline = self._score(model, forward, greedy_tokens, batch, tables).reward
        advantages = compute_advantages(samples.reward, baseline, normalised=self.advantages == "normalised")
        is_token = find_caption_tokens(tokens)
        weights = (advantages * mask[:, None])[..., None] * is_token
        loss = self._weighted_loss(model, forward, tokens, weights)

        def mean(values: Float[Array, "images samples"] | Bool[Array, "images samples"]) -> Ratio:
            return Ratio((values * mask[:, None]).sum().astype(jnp.float32), mask.sum() * jnp.float32(values.shape[1]))

        metrics = {
            "reward": samples.reward,
            **({} if baseline is None else {"greedy_reward": baseline}),
            **samples.details.metrics,
            **({"similarity": samples.similarity} if self.similarity else {}),
            "words": samples.details.words,
            "function_word_endings": samples.details.has_function_ending,
            "finished": (tokens == EOS).any(-1),
            "distinct": find_distinct(tokens),
        }
        return ObjectiveOutput(
            losses={"loss": Ratio(loss, mask.sum() * jnp.float32(self.samples))},
            metrics={name: mean(values) for name, values in metrics.items()},
        )

    def _generate(
        self, model: ImageCaptioningModel, forward: ForwardPass, key: jax.Array
    ) -> tuple[Int[Array, "images samples length"], Int[Array, "images 1 length"] | None]:
        """Returns the tokens of the samples, and of greedy decoding if it is the baseline."""
        unbound, variables = model.unbind()
        arguments = (unbound, *jax.lax.stop_gradient((variables, forward.memory)))
        max_length = model.decoder.max_length
        with jax.named_scope("samples"):
            samples = sample(
                *arguments,
                key,
                max_length=max_length,
                num_samples=self.samples,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
            )
        if self.baseline != "greedy":
            return samples.all_tokens, None
        with jax.named_scope("greedy"):
            return samples.all_tokens, greedy(*arguments, max_length=max_length).all_tokens

    def _score(
        self,
        model: ImageCaptioningModel,
        forward: ForwardPass,
        tokens: Int[Array, "images captions length"],
        batch: Batch,
        tables: RewardTables,
    ) -> _Scored:
        with jax.named_scope("score"):
            details = score_captions(tokens, batch["index"], tables, self._metrics, include_end=self.include_end)
        reward = self.length * details.words - self.function_word_ending * details.has_function_ending
        for name, weight in self._metrics.items():
            reward += weight * details.metrics[name]
        if not self.similarity:
            return _Scored(reward, details, jnp.zeros_like(reward))
        with jax.named_scope("similarity"):
            similarity = compute_similarity(model, forward, tokens)
        return _Scored(reward + self.similarity * similarity, details, similarity)

    def _weighted_loss(
        self,
        model: ImageCaptioningModel,
        forward: ForwardPass,
        tokens: Int[Array, "images samples length"],
        weights: Float[Array, "images samples length"],
    ) -> Float[Array, ""]:
        """Returns the sum of the negative log-probabilities of tokens times their weights."""
        inputs = jnp.concatenate([jnp.full_like(tokens[..., :1], BOS), tokens[..., :-1]], axis=-1)
        states = model.decode(inputs, forward.memory, train=self.dropout).states
        embedding, bias = model.output_layer()
        if self.temperature != 1:
            embedding, bias = embedding / self.temperature, bias / self.temperature
        cross_entropy = model.ops.vocabulary_cross_entropy
        return cross_entropy(states, embedding, bias, tokens, weights, shards=forward.shards).loss_sum


class _Scored(NamedTuple):
    reward: Float[Array, "images captions"]
    details: CaptionRewards
    similarity: Float[Array, "images captions"]


def compute_advantages(
    rewards: Float[Array, "images samples"], baseline: Float[Array, "images 1"] | None, *, normalised: bool
) -> Float[Array, "images samples"]:
    """Returns the difference between each reward and a baseline that does not depend on the sample.

    Args:
        rewards: rewards of the samples of each image.
        baseline: reward of another caption of each image; if None, the mean of the other samples.
        normalised: whether to divide by the standard deviation of the rewards of the image.
    """
    if baseline is None:
        count = rewards.shape[1]
        baseline = (rewards.sum(1, keepdims=True) - rewards) / (count - 1)
    advantages = rewards - baseline
    return advantages / (rewards.std(1, keepdims=True) + _MIN_DEVIATION) if normalised else advantages


def compute_similarity(
    model: ImageCaptioningModel, forward: ForwardPass, tokens: Int[Array, "images captions length"]
) -> Float[Array, "images captions"]:
    """Returns the cosine similarity of each image and its captions in the joint embedding, without gradients.

    Args:
        model: model bound to its variables.
        forward: forward pass of the images.
        tokens: token ids after <s>.

    Raises:
        ConfigError: the model has no joint embedding.
    """
    if model.joint_embedding is None:
        raise ConfigError(
            "SequenceReward.similarity requires a joint embedding of images and captions: set "
            "config.objective.contrastive_weight, such as 0.1"
        )
    captions = jnp.where(find_caption_tokens(tokens), tokens, PAD)
    captions = jnp.concatenate([jnp.full_like(tokens[..., :1], BOS), captions], axis=-1)
    ids = forward.text_ids(captions).reshape(-1, captions.shape[-1])
    texts = model.embed_texts(ids, ids != PAD).reshape(*tokens.shape[:2], -1)
    images = model.embed_images(forward.image_features)
    products = jnp.einsum("nd,nkd->nk", images, texts, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.stop_gradient(products).astype(jnp.float32)


def find_caption_tokens(tokens: Int[Array, "*captions length"]) -> Bool[Array, "*captions length"]:
    """Returns True up to and including the first </s> of each caption."""
    is_end = tokens == EOS
    return jnp.cumsum(is_end, axis=-1) - is_end == 0


def find_distinct(tokens: Int[Array, "images samples length"]) -> Bool[Array, "images samples"]:
    """Returns True for samples that differ from all earlier samples of the image."""
    is_same = (tokens[:, :, None] == tokens[:, None]).all(-1)
    return ~jnp.tril(is_same, -1).any(-1)
