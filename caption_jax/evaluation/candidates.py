"""The candidates that beam search finds for the images of a split, under several length penalties at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from caption_jax.decoding import similarities
from caption_jax.inference.captioning import decode_features, encode_batch
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.runs.experiment import Experiment
from caption_jax.specs import DecodeSpec
from input_pipeline.batches import eval_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.records import Split

PyTree = Any


@dataclass(frozen=True)
class ImageCandidates:
    """The captions that beam search finds for an image: `texts[a][c]` is the c-th under the a-th exponent.

    Attributes:
        texts: captions.
        scores: what beam search ranks them by; -inf for a place that holds none.
        similarities: cosine of each and the image.
    """

    texts: tuple[tuple[str, ...], ...]
    scores: Float32[np.ndarray, "exponents candidates"]
    similarities: Float32[np.ndarray, "exponents candidates"]

    def best(self, exponent: int, weight: float) -> str:
        """The caption that decoding returns with that exponent (by its index) and `rerank_weight`."""
        ranked = self.scores[exponent] + np.float32(weight) * self.similarities[exponent]
        return self.texts[exponent][int(np.argmax(ranked))]


def find_candidates(
    experiment: Experiment,
    split: Split,
    variables: PyTree,
    decode_spec: DecodeSpec,
    exponents: Sequence[float],
    context: ContextCaptions | None = None,
) -> dict[Any, ImageCandidates]:
    """All beams of every image of a split that can be read, by image id; each image is read and encoded once.

    Args:
        experiment: a run whose model has a text encoder.
        split: the images.
        variables: of the model.
        decode_spec: of a beam search; `alpha` and the ranking are left out of account.
        exponents: values of `alpha`.
        context: what stands beside the images; None for nothing.
    """
    mesh, description = experiment.mesh, experiment.description
    step = jax.jit(
        _make_step(experiment, decode_spec, exponents),
        in_shardings=(None, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    batches = eval_batches(
        split,
        description.preprocessing,
        description.vocabulary,
        experiment.spec.data,
        context=context,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    found = {}
    for batch in batches:
        out = jax.device_get(step(variables, put_batch(batch, mesh)))
        for row in np.flatnonzero(out["mask"]):
            texts = tuple(tuple(map(description.vocabulary.decode, tokens)) for tokens in out["tokens"][:, row])
            fit = ImageCandidates(texts, out["scores"][:, row], out["similarities"][:, row])
            found[split[int(out["index"][row])].image_id] = fit
    return found


def _make_step(
    experiment: Experiment, decode_spec: DecodeSpec, exponents: Sequence[float]
) -> Callable[[PyTree, dict[str, jax.Array]], dict[str, jax.Array]]:
    """`(variables, batch) -> outputs`, each of the candidates' [exponents, batch, candidates, ...]."""
    model, description = experiment.model(), experiment.description
    spec = dataclasses.replace(decode_spec, candidates=decode_spec.beams, rerank_weight=0.0)

    def step(variables: PyTree, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        features = encode_batch(model, variables, batch, description)

        def search(alpha: Float[jax.Array, ""]) -> dict[str, jax.Array]:
            asked = dataclasses.replace(spec, alpha=alpha)
            decoded = decode_features(model, variables, features, description, asked)
            fit = similarities(model, variables, features, decoded.all_tokens, description.text_ids)
            return {"tokens": decoded.all_tokens, "scores": decoded.all_scores, "similarities": fit}

        found = jax.lax.map(search, jnp.asarray(exponents, jnp.float32))  # one search is compiled for all of them
        return {**found, "index": batch["index"], "mask": batch["mask"]}

    return step
