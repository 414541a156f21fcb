"""Evaluator of image-text retrieval in the joint embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from caption_jax.evaluation.evaluator import EvalBatch, Evaluator, Result, SplitOutputs
from caption_jax.metrics import retrieval_scores
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.runs.experiment import Experiment
from input_pipeline.records import Split
from input_pipeline.special_tokens import PAD

PyTree = Any


class TextEmbedder:
    """Embeds texts in the joint embedding space, in batches of `config.data.eval_batch_size`. Compiles once.

    Args:
        experiment: a run whose model has a text encoder.
    """

    def __init__(self, experiment: Experiment):
        model, mesh = experiment.model(), experiment.mesh
        self._mesh, self._batch_size = mesh, experiment.spec.data.eval_batch_size
        self._tokenizer = experiment.description.text_tokenizer

        def embed(variables: PyTree, ids: jax.Array) -> jax.Array:
            return model.apply(variables, ids, ids != PAD, train=False, method="embed_texts")

        self._embed = jax.jit(embed, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))

    def __call__(self, variables: PyTree, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Returns the unit vectors of all texts, replicated in every process."""
        ids = self._tokenizer.encode(texts)
        vectors = []
        for start in range(0, len(ids), self._batch_size):
            chunk = ids[start : start + self._batch_size]
            padded = np.full((self._batch_size, ids.shape[1]), PAD, np.int32)
            padded[: len(chunk)] = chunk
            local_ids = np.split(padded, jax.process_count())[jax.process_index()]
            vectors.append(np.asarray(self._embed(variables, put_batch(local_ids, self._mesh)))[: len(chunk)])
        return np.concatenate(vectors)


@dataclasses.dataclass(frozen=True)
class RetrievalRecall(Evaluator):
    """Computes recall@k and the median rank of retrieval between the images of a split and their reference captions."""

    def metric_names(self) -> tuple[str, ...]:
        """Returns the metric names of `retrieval_scores`."""
        return tuple(retrieval_scores(np.ones((1, 1)), np.zeros(1, int)))

    def prepare(self, experiment: Experiment) -> TextEmbedder:
        """Builds the text embedding function, which is compiled on first use."""
        return TextEmbedder(experiment)

    def outputs(self, state: TextEmbedder, batch: EvalBatch) -> dict[str, jax.Array]:
        """Returns `image` [batch, width], the unit vectors of the images."""
        return {"image": batch.model.apply(batch.variables, batch.features, method="embed_images")}

    def summarise(self, state: TextEmbedder, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Computes retrieval metrics over all images and captions of the split."""
        if not outputs.split.captions:
            return Result()
        text_vectors = state(variables, outputs.split.captions)
        return Result(split_retrieval(outputs.split, outputs.arrays["image"], text_vectors))


def split_retrieval(
    split: Split, images: Mapping[Any, Float32[np.ndarray, " width"]], texts: Float32[np.ndarray, "captions width"]
) -> dict[str, float]:
    """Computes image-text retrieval metrics on a split. Images without captions are excluded.

    Args:
        split: the split.
        images: image id -> vector. Images that could not be read are missing and count as misses in both directions.
        texts: vectors of `split.captions`.

    Returns:
        The result of `retrieval_scores`; empty if no image has a caption.
    """
    records = [record for record in split if record.captions]
    if not records:
        return {}
    image_of_text = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    similarity = np.full((len(records), len(texts)), -np.inf, np.float32)
    readable = [row for row, record in enumerate(records) if record.image_id in images]
    if readable:
        similarity[readable] = np.stack([images[records[row].image_id] for row in readable]) @ texts.T
    return retrieval_scores(similarity, image_of_text)
