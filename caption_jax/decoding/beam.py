"""Beam search with length penalties, multiple candidates and diverse groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from caption_jax.decoding.beam_loop import BeamSearch, select_best
from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.greedy import greedy
from caption_jax.decoding.predictor import Predictor
from caption_jax.errors import ConfigError
from input_pipeline.special_tokens import BOS, EOS, PAD

# Length penalties by name, as functions of the length in tokens (including </s>) and the exponent.
LENGTH_PENALTIES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "power": lambda length, alpha: length**alpha,
    "gnmt": lambda length, alpha: ((5.0 + length) / 6.0) ** alpha,  # Wu et al., 2016, https://arxiv.org/abs/1609.08144
}

# Exponents to try when tuning, for each length penalty.
EXPONENTS = {"power": (0.0, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3), "gnmt": (0.5, 0.8, 1.1, 1.4, 1.7, 2.0)}


def beam_search(  # noqa: PLR0913 - keyword-only: search settings and the arguments common to all methods
    model: Any,
    variables: Any,
    features: Any,
    *,
    max_length: int,
    num_beams: int = 5,
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
    """Searches for the highest-scoring captions, keeping the `num_beams` best live hypotheses at each step.

    The score of a caption is its log-probability (after constraints) divided by the length penalty. At each step, all
    live hypotheses are extended by one token and the extensions are ranked. Extensions by </s> among the best
    `num_beams` become finished hypotheses. The `num_beams` best extensions by other tokens become the next live
    hypotheses, so the number of live hypotheses never decreases. Hypotheses that reach the length limit also become
    finished hypotheses. An image is done once none of its live hypotheses can overtake its `candidates` best finished
    hypotheses, and the loop stops once all images are done.
    `num_beams=1` runs greedy decoding.

    With `groups` above 1 this is diverse beam search (Vijayakumar et al., 2016, https://arxiv.org/abs/1610.02424): the
    groups choose their tokens one after another, and each token is penalised by `diversity` times the number of
    hypotheses in earlier groups that chose it at the same step.

    Can be traced by `jax.jit`.

    Args:
        model: a captioner, or a sequence of captioners (an ensemble, whose probabilities are averaged).
        variables: variables of the model (for an ensemble, a sequence with one entry per model).
        features: image features from `ImageCaptioningModel.encode_images`, or only the memory array (for an ensemble,
            a sequence with one entry per model).
        max_length: maximum caption length in tokens, including <s> and </s>; the decoder's own limit also applies.
        num_beams: total number of live hypotheses per image, over all groups.
        candidates: number of captions to return per image, best first; 1, or a multiple of `groups`, to which all
            groups contribute equally.
        length_penalty: "power" (length ** alpha) or "gnmt" (((5 + length) / 6) ** alpha), where the length in tokens
            includes </s> but not <s>.
        alpha: exponent of the length penalty; 0 disables it, larger values favour longer captions.
        groups: number of groups; must divide `num_beams`.
        diversity: strength of the diversity penalty between groups, at least 0.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory positions to attend to; all positions if None.
        return_attention: also return the cross-attention of each token.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id of <pad>, which pads finished captions.

    Raises:
        ConfigError: the counts are inconsistent, or the length penalty is unknown.

    Example:
        Suppose the first token is "a" (0.6) or "one" (0.4), followed by "cat" (0.4), "dog" (0.3) or </s> (0.3) after
        "a", and by "cat" (0.9) or </s> (0.1) after "one", and every noun is followed by </s>. Greedy decoding returns
        "a cat" (0.24). With `num_beams=2`, both first tokens become hypotheses and their best extensions are "one cat"
        (0.36) and "a cat" (0.24), so "one cat </s>" is returned with `score == [log 0.36]`. `candidates=2` also returns
        "a cat </s>". With "power" and `alpha=1`, the scores are divided by 3, the length including </s>.
    """
    _check_settings(num_beams, candidates, groups, length_penalty)
    penalty = functools.partial(_compute_penalty, length_penalty, alpha)
    if num_beams == 1:
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
    group_captions = BeamSearch(
        predictor=predictor,
        length=predictor.limit_length(max_length),
        width=num_beams // groups,
        groups=groups,
        candidates=max(candidates // groups, 1),
        penalty=penalty,
        diversity=diversity,
        constraints=tuple(constraints),
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    ).run()
    decoded = Decoded(*select_best(list(group_captions), candidates))
    if return_attention:
        decoded = decoded.replace(all_attention=predictor.compute_attention(decoded.all_tokens, bos_id, pad_id))
    return decoded


def _check_settings(num_beams: int, candidates: int, groups: int, length_penalty: str) -> None:
    if min(num_beams, candidates, groups) < 1:
        raise ConfigError(f"num_beams={num_beams}, candidates={candidates} and groups={groups} must all be at least 1")
    if num_beams % groups:
        raise ConfigError(f"groups={groups} must divide num_beams={num_beams}")
    if candidates > 1 and candidates % groups:
        raise ConfigError(
            f"candidates={candidates} must be 1 or a multiple of groups={groups}, because every group returns the same "
            "number of captions"
        )
    if candidates > num_beams:
        raise ConfigError(f"candidates={candidates} cannot be more than num_beams={num_beams}; increase num_beams")
    if length_penalty not in LENGTH_PENALTIES:
        raise ConfigError(f"unknown length_penalty {length_penalty!r}; expected one of {', '.join(LENGTH_PENALTIES)}")


def _compute_penalty(name: str, alpha: float | jax.Array, length: jax.Array) -> jax.Array:
    return LENGTH_PENALTIES[name](jnp.maximum(length, 1).astype(jnp.float32), jnp.asarray(alpha, jnp.float32))
