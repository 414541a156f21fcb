"""Beam search candidates for the images of a split, under several exponents of the length penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from caption_jax.decoding import Consensus, consensus_scores, similarities
from caption_jax.errors import DataError
from caption_jax.inference.captioning import decode_features, encode_batch
from caption_jax.inference.ensemble import SINGLE_MODEL, Ensemble, join_ensemble
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.runs.description import RunDescription
from caption_jax.runs.experiment import Experiment
from caption_jax.specs import DecodeSpec
from input_pipeline.batches import eval_batches
from input_pipeline.context import ContextCaptions
from input_pipeline.records import Split

PyTree = Any


@dataclass(frozen=True)
class ImageCandidates:
    """Beam search candidates of one image.

    Attributes:
        texts: captions; `texts[a][c]` is the c-th candidate under the a-th exponent of the length penalty.
        scores: beam search scores; -inf for missing candidates.
        similarities: cosine similarity between each caption and the image; 0 without a joint embedding.
        consensus: score that each caption can expect among the others.
    """

    texts: tuple[tuple[str, ...], ...]
    scores: Float32[np.ndarray, "exponents candidates"]
    similarities: Float32[np.ndarray, "exponents candidates"]
    consensus: Float32[np.ndarray, "exponents candidates"]

    def best(self, exponent_index: int, rerank_weight: float, consensus_weight: float = 0.0) -> str:
        """Returns the caption selected with the exponent at `exponent_index` and these weights."""
        similarities, consensus = self.similarities[exponent_index], self.consensus[exponent_index]
        total = np.float32(rerank_weight) * similarities + np.float32(consensus_weight) * consensus
        return self.texts[exponent_index][int(np.argmax(self.scores[exponent_index] + total))]


def find_candidates(
    experiment: Experiment,
    split: Split,
    variables: PyTree,
    decode_spec: DecodeSpec,
    exponents: Sequence[float],
    consensus: Consensus,
    context: ContextCaptions | None = None,
    ensemble: Ensemble = SINGLE_MODEL,
) -> dict[Any, ImageCandidates]:
    """Finds the beam search candidates of every readable image of a split. Each image is read and encoded once.

    Args:
        experiment: the run.
        split: the images.
        variables: the variables of the model.
        decode_spec: beam search settings; `alpha` and the reranking settings are ignored.
        exponents: values of `alpha`.
        consensus: see `make_consensus`.
        context: context captions of the images, or None.
        ensemble: other models that decode with the model of the run.

    Returns:
        Image id -> candidates.
    """
    mesh, description = experiment.mesh, experiment.description
    step = jax.jit(
        _make_step(experiment, decode_spec, exponents, consensus, ensemble.descriptions),
        in_shardings=(None, batch_sharding(mesh), None),
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
    step = experiment.display.around_first_call(step, "compiling beam search")
    candidates = {}
    with experiment.display.phase("beam search", len(split), "images") as phase:
        for batch in batches:
            outputs = jax.device_get(step(variables, put_batch(batch, mesh), ensemble.variables))
            for row in np.flatnonzero(outputs["mask"]):
                texts = tuple(tuple(map(description.vocabulary.decode, tokens)) for tokens in outputs["tokens"][:, row])
                arrays = (outputs[name][:, row] for name in ("scores", "similarities", "consensus"))
                image_id = split[int(outputs["index"][row])].image_id
                candidates[image_id] = ImageCandidates(texts, *arrays)
            phase.advance(experiment.spec.data.eval_batch_size)
    if not candidates:
        reason = next(iter(batches.problems.values()), "the split is empty")
        raise DataError(f"none of the {len(split)} images of the split {split.name} could be read, such as {reason}")
    return candidates


def _make_step(
    experiment: Experiment,
    decode_spec: DecodeSpec,
    exponents: Sequence[float],
    consensus: Consensus,
    others: Sequence[RunDescription],
) -> Callable[[PyTree, dict[str, jax.Array], Sequence[PyTree]], dict[str, jax.Array]]:
    """Builds `(variables, batch, other_variables) -> outputs`.

    Arrays of candidates have the shape [exponents, batch, candidates, ...].
    """
    model, description = experiment.model(), experiment.description
    spec = dataclasses.replace(decode_spec, candidates=decode_spec.num_beams, rerank_weight=0.0, consensus_weight=0.0)

    def step(variables: PyTree, batch: dict[str, jax.Array], other_variables: Sequence[PyTree]) -> dict[str, jax.Array]:
        features = encode_batch(model, variables, batch, description)
        joined = join_ensemble(model, variables, features, batch["image"], others, other_variables)

        def decode_candidates(alpha: Float[jax.Array, ""]) -> dict[str, jax.Array]:
            decoded = decode_features(*joined, description, dataclasses.replace(spec, alpha=alpha))
            if model.joint_embedding is None:
                similarity = jnp.zeros_like(decoded.all_scores)
            else:
                similarity = similarities(model, variables, features, decoded.all_tokens, description.text_ids)
            return {
                "tokens": decoded.all_tokens,
                "scores": decoded.all_scores,
                "similarities": similarity,
                "consensus": consensus_scores(decoded, spec, consensus),
            }

        results = jax.lax.map(decode_candidates, jnp.asarray(exponents, jnp.float32))  # compiles beam search once
        return {**results, "index": batch["index"], "mask": batch["mask"]}

    return step
