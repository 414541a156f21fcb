"""How well the images of a split and their captions find each other in the space that they share."""

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


class TextVectors:
    """Puts texts in the shared space, `config.data.eval_batch_size` at a time; compiled once.

    Args:
        experiment: a run whose model has a text encoder.
    """

    def __init__(self, experiment: Experiment):
        model, mesh = experiment.model(), experiment.mesh
        self._mesh, self._size = mesh, experiment.spec.data.eval_batch_size
        self._tokenizer = experiment.description.text_tokenizer

        def embed(variables: PyTree, ids: jax.Array) -> jax.Array:
            return model.apply(variables, ids, ids != PAD, train=False, method="embed_texts")

        self._run = jax.jit(embed, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))

    def __call__(self, variables: PyTree, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Unit vectors of texts, all of them in every process."""
        ids = self._tokenizer.encode(texts)
        found = []
        for start in range(0, len(ids), self._size):
            chunk = ids[start : start + self._size]
            whole = np.full((self._size, ids.shape[1]), PAD, np.int32)
            whole[: len(chunk)] = chunk
            mine = np.split(whole, jax.process_count())[jax.process_index()]
            found.append(np.asarray(self._run(variables, put_batch(mine, self._mesh)))[: len(chunk)])
        return np.concatenate(found)


@dataclasses.dataclass(frozen=True)
class RetrievalRecall(Evaluator):
    """Recall@k and median rank between the images of a split and their captions, in the joint embedding."""

    def metric_names(self) -> tuple[str, ...]:
        """Those of `retrieval_scores`."""
        return tuple(retrieval_scores(np.ones((1, 1)), np.zeros(1, int)))

    def prepare(self, experiment: Experiment) -> TextVectors:
        """The text side of the joint embedding, compiled when it is first used."""
        return TextVectors(experiment)

    def outputs(self, state: TextVectors, batch: EvalBatch) -> dict[str, jax.Array]:
        """`image` [batch, width]: unit vectors of the images."""
        return {"image": batch.model.apply(batch.variables, batch.features, method="embed_images")}

    def summarise(self, state: TextVectors, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Ranks all images of the split for each caption, and all captions for each image."""
        if not outputs.split.captions:
            return Result()
        texts = state(variables, outputs.split.captions)
        return Result(split_retrieval(outputs.split, outputs.arrays["image"], texts))


def split_retrieval(
    split: Split, images: Mapping[Any, Float32[np.ndarray, " width"]], texts: Float32[np.ndarray, "captions width"]
) -> dict[str, float]:
    """Recall and median rank among all images of a split that have captions, and all their captions.

    Args:
        split: the split.
        images: vectors by image id. An image that could not be read has none: it and its captions find nothing.
        texts: vectors of `split.captions`.

    Returns:
        What `retrieval_scores` returns; nothing where no image has a caption.
    """
    records = [record for record in split if record.captions]
    if not records:
        return {}
    image_of_text = np.repeat(np.arange(len(records)), [len(record.captions) for record in records])
    similarity = np.full((len(records), len(texts)), -np.inf, np.float32)
    seen = [row for row, record in enumerate(records) if record.image_id in images]
    if seen:
        similarity[seen] = np.stack([images[records[row].image_id] for row in seen]) @ texts.T
    return retrieval_scores(similarity, image_of_text)
