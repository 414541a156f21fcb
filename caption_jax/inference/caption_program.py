"""The compiled programs that caption batches of images, for `Captioner` and for serving."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax

from caption_jax.inference.captioning import decode_features, encode_for_decoding
from caption_jax.inference.ensemble import Ensemble, join_ensemble
from caption_jax.parameters.stored_dtypes import restore
from caption_jax.runs.description import RunDescription
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.runtime.compilation_cache import is_cache_safe, locate_cache
from caption_jax.specs import DecodeSpec, as_mapping
from input_pipeline.special_tokens import EOS

if TYPE_CHECKING:
    from caption_jax.decoding.consensus import Consensus

PyTree = Any


def make_caption_program(
    description: RunDescription, spec: DecodeSpec, ensemble: Ensemble, workdir: str | os.PathLike[str] | None
) -> CachedProgram:
    """Makes the program that captions batches of images. It is compiled for each batch size when first called.

    Its arguments are the variables of the model, the images [batch, size, size, 3] uint8, their context (see
    `encode_for_decoding`) or None, and the variables of the other models of the ensemble. It returns the tokens
    [batch, length] and the log-probabilities [batch] of the best captions.

    With two more arguments, each image has its own limits, and the program returns all candidates, best first: tokens
    [batch, candidates, length] and log-probabilities [batch, candidates]. The first argument contains the tokens
    [batch, prefix] that each caption starts with, padded with -1. The second contains the maximum number of tokens
    [batch] of each caption including <s> and </s>, which ends it with </s>; above `spec.max_length`, it has no effect.

    Args:
        description: description of the model.
        spec: decoding settings.
        ensemble: the other models of the ensemble.
        workdir: the workdir, for the cache of compiled programs and for document frequencies.
    """
    consensus = None
    if spec.consensus_weight:
        from caption_jax.inference.consensus_setup import make_consensus  # imports Flax

        consensus = make_consensus(spec, description, workdir)
    generate = make_caption_function(description, spec, ensemble, consensus)
    key = {**description.cache_key(), "decode": as_mapping(spec)}
    key |= {"ensemble": [other.cache_key() for other in ensemble.descriptions]}
    key |= {"consensus": None if consensus is None else consensus.fingerprint()}
    return CachedProgram(generate, "caption", key, default_folder=locate_programs(workdir))


def make_caption_function(
    description: RunDescription, spec: DecodeSpec, ensemble: Ensemble, consensus: Consensus | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns the function of `make_caption_program`, to be traced by `jax.jit` or `jax.export`."""

    def generate(
        variables: PyTree,
        pixels: jax.Array,
        context: jax.Array | None,
        others: tuple[PyTree],
        prefixes: jax.Array | None = None,
        limits: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        model, variables = description.model(), restore(variables)
        features = encode_for_decoding(model, variables, pixels, context, description)
        models = join_ensemble(model, variables, features, pixels, ensemble.descriptions, others)
        if prefixes is None:
            decoded = decode_features(*models, description, spec, consensus=consensus)
            return decoded.tokens, decoded.log_prob
        from caption_jax.decoding.constraints import max_length, required_prefix  # imports Flax

        constraints = [required_prefix(prefixes), max_length(limits, eos_id=EOS)]
        decoded = decode_features(*models, description, spec, consensus=consensus, constraints=constraints)
        return decoded.all_tokens, decoded.all_log_probs

    return generate


def locate_programs(workdir: str | os.PathLike[str] | None) -> str | None:
    """Returns the folder for compiled programs of a workdir; None if they must not be stored."""
    return locate_cache(workdir) if is_cache_safe() else None
