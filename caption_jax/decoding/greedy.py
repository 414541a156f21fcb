"""Greedy decoding: the likeliest token at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Bool

from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.predictor import Predictor
from caption_jax.decoding.rollout import roll_out
from input_pipeline.special_tokens import BOS, EOS, PAD


def greedy(  # noqa: PLR0913 - by keyword: what all decoding methods take
    model: Any,
    variables: Any,
    features: Any,
    *,
    max_length: int,
    constraints: Sequence[Constraint] = (),
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    bos_id: int = BOS,
    eos_id: int = EOS,
    pad_id: int = PAD,
) -> Decoded:
    """Takes the likeliest token at each step, in one loop that stops when every caption has ended.

    Can be traced by `jax.jit`. Ties go to the smaller id.

    Args:
        model: the captioner, or a sequence of them: an ensemble averaged in probability.
        variables: its variables (of an ensemble: a sequence, one a model).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory (or a sequence).
        max_length: most tokens of a caption, <s> and </s> included; the decoder's own limit also holds.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id that fills up ended captions.

    Example:
        With a model that says "a" (0.9), "cat" (0.6), </s> (0.8) in turn and `max_length=6`, `tokens` is
        `[[a, cat, </s>, <pad>, <pad>]]`, `token_log_probs` `[[log 0.9, log 0.6, log 0.8, 0, 0]]` and `log_prob`
        `[log 0.432]`, after three steps.
    """
    predictor = Predictor(model, variables, features, memory_mask)
    decoded = roll_out(
        predictor,
        lambda log_probs, step: log_probs.argmax(-1),
        rows=1,
        max_length=max_length,
        constraints=constraints,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    if return_attention:
        decoded = decoded.replace(all_attention=predictor.attention(decoded.all_tokens, bos_id, pad_id))
    return decoded
