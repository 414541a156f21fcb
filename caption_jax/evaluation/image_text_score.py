"""Image-caption similarity in the joint embedding of the model, a metric that does not require references.

Uses the formulas of CLIPScore and RefCLIPScore (Hessel et al. 2021, https://arxiv.org/abs/2104.08718), but replaces
CLIP with the joint embedding of the evaluated model, which is trained with `config.objective.contrastive_weight`. The
scores are therefore not CLIPScores, and only scores computed with the same model can be compared. They are also biased
in favour of captions that were reranked with this embedding (`config.decode.rerank_weight`). To enable the metric:

    config.evaluators = {"similarity": {"name": "caption_jax.evaluation.image_text_score:JointEmbeddingScore"}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from caption_jax.errors import ConfigError
from caption_jax.evaluation.evaluator import EvalBatch, Evaluator, ImageId, Result, SplitOutputs
from input_pipeline.special_tokens import BOS, PAD

if TYPE_CHECKING:  # the config imports this module in every mode, so the import must be fast
    from caption_jax.evaluation.recall import TextEmbedder
    from caption_jax.runs.experiment import Experiment

PyTree = Any

SCORE = "joint_embedding_score"
REFERENCE_SCORE = "ref_joint_embedding_score"


class _State(NamedTuple):
    to_text_ids: Any  # maps token ids of the decoder to token ids of the text encoder
    embed_texts: TextEmbedder


@dataclasses.dataclass(frozen=True)
class JointEmbeddingScore(Evaluator):
    """Computes `joint_embedding_score`, and `ref_joint_embedding_score`, which takes the references into account.

    Both are means over the images of the split. Unreadable images and empty captions count as 0.
    """

    weight: float = 2.5  # scale of the cosine, w in CLIPScore

    def __post_init__(self):
        if not self.weight > 0:
            raise ConfigError(f"weight of JointEmbeddingScore is {self.weight}; it must be above 0")

    def metric_names(self) -> tuple[str, ...]:
        """Returns the names of the two scores."""
        return SCORE, REFERENCE_SCORE

    def prepare(self, experiment: Experiment) -> _State:
        """Builds the text embedding function.

        Raises:
            ConfigError: the model has no joint embedding.
        """
        from caption_jax.evaluation.recall import TextEmbedder

        if not experiment.description.has_joint_embedding:
            raise ConfigError(
                f"{SCORE} requires a model with a joint embedding of images and texts: train one with "
                "config.objective.contrastive_weight above 0, or remove the score from config.evaluators"
            )
        return _State(experiment.description.text_ids, TextEmbedder(experiment))

    def outputs(self, state: _State, batch: EvalBatch) -> dict[str, jax.Array]:
        """Returns `image` and `caption` [batch, width], the unit vectors of the images and their decoded captions."""
        tokens = batch.decoded.tokens
        ids = state.to_text_ids(jnp.concatenate([jnp.full_like(tokens[:, :1], BOS), tokens], axis=-1))
        return {
            "image": batch.model.apply(batch.variables, batch.features, method="embed_images"),
            "caption": batch.model.apply(batch.variables, ids, ids != PAD, method="embed_texts"),
        }

    def summarise(self, state: _State, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Computes the per-image scores and their means."""
        records = [record for record in outputs.split if outputs.captions[record.image_id]]
        scores = dict.fromkeys(outputs.split.image_ids, 0.0)
        ref_scores = dict(scores)
        if records:
            ids = [record.image_id for record in records]
            captions = _stack_vectors(outputs.arrays["caption"], ids)
            image_scores = image_text_scores(_stack_vectors(outputs.arrays["image"], ids), captions, self.weight)
            reference_captions = [caption for record in records for caption in record.captions]
            text_vectors = state.embed_texts(variables, reference_captions)
            references = np.split(text_vectors, np.cumsum([len(record.captions) for record in records])[:-1])
            pairs = zip(references, captions, strict=True)
            max_cosines = np.array([(vectors @ caption).max(initial=0.0) for vectors, caption in pairs])
            scores |= dict(zip(ids, image_scores.tolist(), strict=True))
            ref_scores |= dict(zip(ids, reference_scores(image_scores, max_cosines).tolist(), strict=True))
        per_image = {SCORE: scores, REFERENCE_SCORE: ref_scores}
        means = {name: float(np.mean(list(values.values()))) for name, values in per_image.items()}
        return Result(means, per_image, {"embedding": "joint embedding of the evaluated model, not CLIP"})


def image_text_scores(
    images: Float[np.ndarray, "images width"], captions: Float[np.ndarray, "images width"], weight: float
) -> Float[np.ndarray, " images"]:
    """Applies the CLIPScore formula for unit vectors, `weight * max(cos, 0)`."""
    return weight * np.maximum(np.sum(images * captions, axis=-1), 0)


def reference_scores(
    scores: Float[np.ndarray, " images"], max_cosines: Float[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """Applies the RefCLIPScore formula, the harmonic mean of the score and the maximum cosine with a reference.

    Args:
        scores: output of `image_text_scores`.
        max_cosines: maximum cosine between the caption and the references of the image; negative values count as 0.
    """
    max_cosines = np.maximum(max_cosines, 0)
    total = scores + max_cosines
    return np.where(total > 0, 2 * scores * max_cosines / np.where(total > 0, total, 1), 0)


def _stack_vectors(vectors: Mapping[ImageId, np.ndarray], ids: list[ImageId]) -> Float[np.ndarray, "images width"]:
    return np.stack([vectors[image_id] for image_id in ids])
