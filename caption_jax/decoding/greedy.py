"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Bool

from caption_jax.decoding.constraints import Constraint
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.predictor import Predictor
from caption_jax.decoding.rollout import roll_out
from input_pipeline.special_tokens import BOS, EOS, PAD


def greedy(  # noqa: PLR0913 - keyword-only: the arguments common to all decoding methods
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
    """Selects the most probable token at each step, in one loop that stops once all captions are finished.

    Can be traced by `jax.jit`. Ties are broken in favour of the smaller token id.

    Args:
        model: a captioner, or a sequence of captioners (an ensemble, whose probabilities are averaged).
        variables: variables of the model (for an ensemble, a sequence with one entry per model).
        features: image features from `ImageCaptioningModel.encode_images`, or only the memory array (for an ensemble,
            a sequence with one entry per model).
        max_length: maximum caption length in tokens, including <s> and </s>; the decoder's own limit also applies.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory positions to attend to; all positions if None.
        return_attention: also return the cross-attention of each token.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id of <pad>, which pads finished captions.

    Example:
        If the most probable tokens are "a" (0.9), then "cat" (0.6), then </s> (0.8), the loop runs for three steps.
        With `max_length=6`, `tokens` is `[[a, cat, </s>, <pad>, <pad>]]`, `token_log_probs` is
        `[[log 0.9, log 0.6, log 0.8, 0, 0]]` and `log_prob` is `[log 0.432]`.
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
        decoded = decoded.replace(all_attention=predictor.compute_attention(decoded.all_tokens, bos_id, pad_id))
    return decoded
