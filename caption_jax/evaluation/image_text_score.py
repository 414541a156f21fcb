"""A score of captions that needs no references: how close they are to their images in the model's own joint embedding.

The formulas are those of CLIPScore and RefCLIPScore (Hessel et al. 2021, https://arxiv.org/abs/2104.08718), but the
embedding is the evaluated model's, trained with `config.objective.contrastive_weight`, not CLIP's: these are not
CLIPScores, and only those of one and the same model can be compared. Nor are they independent of a model that ranks its
candidates by this embedding (`config.decode.rerank_weight`). A config adds the score as

    config.evaluators = {"own": {"name": "caption_jax.evaluation.image_text_score:JointEmbeddingScore"}}
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

if TYPE_CHECKING:  # a run's config imports this module in every mode: it has to stay light
    from caption_jax.evaluation.recall import TextVectors
    from caption_jax.runs.experiment import Experiment

PyTree = Any

SCORE = "joint_embedding_score"
WITH_REFERENCES = "ref_joint_embedding_score"


class _State(NamedTuple):
    text_ids: Any  # from the decoder's token ids to the text encoder's
    texts: TextVectors


@dataclasses.dataclass(frozen=True)
class JointEmbeddingScore(Evaluator):
    """`joint_embedding_score`, and `ref_joint_embedding_score`, which takes the references into account.

    Both are means over the images of the split; an image that could not be read, or has an empty caption, counts as 0.
    """

    weight: float = 2.5  # of the cosine; 2.5 is CLIPScore's w

    def __post_init__(self):
        if not self.weight > 0:
            raise ConfigError(f"weight of JointEmbeddingScore is {self.weight}; it has to be above 0")

    def metric_names(self) -> tuple[str, ...]:
        """The two scores."""
        return SCORE, WITH_REFERENCES

    def prepare(self, experiment: Experiment) -> _State:
        """What turns texts into vectors.

        Raises:
            ConfigError: the model has no joint embedding.
        """
        from caption_jax.evaluation.recall import TextVectors

        if not experiment.description.has_shared_space:
            raise ConfigError(
                f"{SCORE} compares captions with images, and this model has no joint embedding of them: train one with "
                "config.objective.contrastive_weight above 0, or take the score out of config.evaluators"
            )
        return _State(experiment.description.text_ids, TextVectors(experiment))

    def outputs(self, state: _State, batch: EvalBatch) -> dict[str, jax.Array]:
        """`image` and `caption` [batch, width]: unit vectors of the images and of their decoded captions."""
        tokens = batch.decoded.tokens
        ids = state.text_ids(jnp.concatenate([jnp.full_like(tokens[:, :1], BOS), tokens], axis=-1))
        return {
            "image": batch.model.apply(batch.variables, batch.features, method="embed_images"),
            "caption": batch.model.apply(batch.variables, ids, ids != PAD, method="embed_texts"),
        }

    def summarise(self, state: _State, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Scores every image, and all of them together."""
        records = [record for record in outputs.split if outputs.captions[record.image_id]]
        scores = dict.fromkeys(outputs.split.image_ids, 0.0)
        with_references = dict(scores)
        if records:
            ids = [record.image_id for record in records]
            captions = _rows(outputs.arrays["caption"], ids)
            values = image_text_scores(_rows(outputs.arrays["image"], ids), captions, self.weight)
            texts = state.texts(variables, [caption for record in records for caption in record.captions])
            of_image = np.split(texts, np.cumsum([len(record.captions) for record in records])[:-1])
            closest = np.array([(near @ caption).max() for near, caption in zip(of_image, captions, strict=True)])
            scores |= dict(zip(ids, values.tolist(), strict=True))
            with_references |= dict(zip(ids, reference_scores(values, closest).tolist(), strict=True))
        per_image = {SCORE: scores, WITH_REFERENCES: with_references}
        means = {name: float(np.mean(list(values.values()))) for name, values in per_image.items()}
        return Result(means, per_image, {"embedding": "of the evaluated model, not CLIP's"})


def image_text_scores(
    images: Float[np.ndarray, "images width"], captions: Float[np.ndarray, "images width"], weight: float
) -> Float[np.ndarray, " images"]:
    """CLIPScore's formula, `weight * max(cos, 0)`, of unit vectors."""
    return weight * np.maximum(np.sum(images * captions, axis=-1), 0)


def reference_scores(
    scores: Float[np.ndarray, " images"], closest: Float[np.ndarray, " images"]
) -> Float[np.ndarray, " images"]:
    """RefCLIPScore's formula: the harmonic mean of each image's score and its caption's closeness to the references.

    Args:
        scores: from `image_text_scores`.
        closest: largest cosine of the caption and one of the image's references.
    """
    closest = np.maximum(closest, 0)
    total = scores + closest
    return np.where(total > 0, 2 * scores * closest / np.where(total > 0, total, 1), 0)


def _rows(vectors: Mapping[ImageId, np.ndarray], ids: list[ImageId]) -> Float[np.ndarray, "images width"]:
    return np.stack([vectors[image_id] for image_id in ids])
