"""Beam search, with length penalties, several candidates and diverse groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.decoding.beam_loop import Search, best_of
from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.predictor import Predictor
from caption_jax.errors import ConfigError
from input_pipeline.special_tokens import BOS, EOS, PAD

# Divisor of a score by name: of the length in tokens, </s> included, and the exponent.
LENGTH_PENALTIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "power": lambda length, alpha: length**alpha,
    "gnmt": lambda length, alpha: ((5.0 + length) / 6.0) ** alpha,  # Wu et al., 2016, https://arxiv.org/abs/1609.08144
}

# Exponents among which to look for the best.
EXPONENTS = {"power": (0.0, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3), "gnmt": (0.5, 0.8, 1.1, 1.4, 1.7, 2.0)}


def beam_search(  # noqa: PLR0913 - by keyword: the search's settings, and what all methods take
    model: Any,
    variables: Any,
    features: Any,
    *,
    max_length: int,
    beams: int = 5,
    candidates: int = 1,
    length_penalty: str = "power",
    alpha: float | Float[Array, ""] = 0.0,
    groups: int = 1,
    diversity: float | Float[Array, ""] = 0.5,
    constraints: Sequence[Constraint] = (),
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    bos_id: int = BOS,
    eos_id: int = EOS,
    pad_id: int = PAD,
) -> Decoded:
    """Searches for the captions of the highest score, keeping the `beams` best beginnings at each step.

    Score of a caption: its log-probability (after constraints) over the length penalty. At each step the `beams` best
    continuations of all beginnings are found; those that end are candidates, and the best that do not end are the next
    beginnings, so that their number never shrinks. Beginnings that reach the length limit count as captions. An image
    is done when none of its beginnings, however it goes on, can overtake its `candidates` best; the loop stops when
    all are done. A beam of one is greedy decoding, and takes its path.

    Groups (Vijayakumar et al., 2016, "Diverse Beam Search", https://arxiv.org/abs/1610.02424): the beams are split into
    groups that choose one after the other; for a group, a token costs `diversity` for each time that groups before it
    have chosen it at this step.

    Can be traced by `jax.jit`.

    Args:
        model: the captioner, or a sequence of them: an ensemble averaged in probability.
        variables: its variables (of an ensemble: a sequence, one a model).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory (or a sequence).
        max_length: most tokens of a caption, <s> and </s> included; the decoder's own limit also holds.
        beams: beginnings kept, over all groups.
        candidates: captions returned for an image, best first. With groups 1, or a multiple of `groups` (as many of
            each).
        length_penalty: "power" (length ** alpha) or "gnmt" (((5 + length) / 6) ** alpha), of the length in tokens, </s>
            included, <s> not.
        alpha: exponent; 0 for no penalty, more for longer captions.
        groups: divides `beams`.
        diversity: strength of the groups' dissimilarity, 0 or more.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id that fills up ended captions.

    Raises:
        ConfigError: numbers that do not go together, or an unknown penalty.

    Example:
        First token: "a" 0.6, "one" 0.4. After "a": "cat" 0.4, "dog" 0.3, </s> 0.3; after "one": "cat" 0.9, </s> 0.1.
        Everything then ends. Greedy says "a cat" (0.24). With `beams=2` both beginnings live on, the best continuations
        are "one cat" (0.36) and "a cat" (0.24), and "one cat </s>" is returned with `score == [log 0.36]`;
        `candidates=2` adds "a cat </s>". With "power" and `alpha=1` the scores are divided by 3, the length with </s>.
    """
    _check(beams, candidates, groups, length_penalty)
    penalty = functools.partial(_penalty, length_penalty, alpha)
    if beams == 1:
        decoded = greedy(
            model,
            variables,
            features,
            max_length=max_length,
            constraints=constraints,
            memory_mask=memory_mask,
            return_attention=return_attention,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
        )
        return decoded.replace(all_scores=decoded.all_scores / penalty((decoded.all_tokens != pad_id).sum(-1)))
    predictor = Predictor(model, variables, features, memory_mask)
    groups_best = Search(
        predictor=predictor,
        length=predictor.limit(max_length),
        width=beams // groups,
        groups=groups,
        keep=max(candidates // groups, 1),
        penalty=penalty,
        diversity=diversity,
        constraints=tuple(constraints),
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    ).run()
    decoded = Decoded(*best_of(list(groups_best), candidates))
    if return_attention:
        decoded = decoded.replace(all_attention=predictor.attention(decoded.all_tokens, bos_id, pad_id))
    return decoded


def _check(beams: int, candidates: int, groups: int, length_penalty: str) -> None:
    if min(beams, candidates, groups) < 1:
        raise ConfigError(f"beams={beams}, candidates={candidates} and groups={groups} must all be at least 1")
    if beams % groups:
        raise ConfigError(f"groups={groups} must divide beams={beams}")
    if candidates > 1 and candidates % groups:
        raise ConfigError(
            f"candidates={candidates} must be 1 or a multiple of groups={groups}: each group gives as many"
        )
    if candidates > beams:
        raise ConfigError(f"candidates={candidates} cannot be more than beams={beams}: raise beams")
    if length_penalty not in LENGTH_PENALTIES:
        raise ConfigError(f"length_penalty is {length_penalty!r}; it must be one of {', '.join(LENGTH_PENALTIES)}")


def _penalty(name: str, alpha: float | jax.Array, length: jax.Array) -> jax.Array:
    return LENGTH_PENALTIES[name](jnp.maximum(length, 1).astype(jnp.float32), jnp.asarray(alpha, jnp.float32))
