"""Sampling captions: temperature, top-k, nucleus, several draws an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from caption_jax.decoding.constraints import Constraint, LogProbs
from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.predictor import Predictor
from caption_jax.decoding.rollout import roll_out
from input_pipeline.special_tokens import BOS, EOS, PAD


def sample(  # noqa: PLR0913 - by keyword: the sampler's settings, and what all methods take
    model: Any,
    variables: Any,
    features: Any,
    key: Key[Array, ""],
    *,
    max_length: int,
    draws: int = 1,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int = 0,
    top_p: float | Float[Array, ""] = 1.0,
    image_ids: Int[Array, " batch"] | None = None,
    constraints: Sequence[Constraint] = (),
    memory_mask: Bool[Array, "batch memory"] | None = None,
    return_attention: bool = False,
    bos_id: int = BOS,
    eos_id: int = EOS,
    pad_id: int = PAD,
) -> Decoded:
    """Draws captions token by token from the model's own probabilities, sharpened or cut as asked.

    Can be traced by `jax.jit`. Constraints come first, then temperature, top-k and top-p. An image's draws depend on
    `key` and its number in `image_ids`, not on the batch that it is in. The log-probabilities returned are the model's,
    at temperature 1 and uncut.

    Args:
        model: the captioner, or a sequence of them: an ensemble averaged in probability.
        variables: its variables (of an ensemble: a sequence, one a model).
        features: of the images, from `ImageCaptioningModel.encode_images`, or a bare memory (or a sequence).
        key: randomness.
        max_length: most tokens of a caption, <s> and </s> included; the decoder's own limit also holds.
        draws: captions an image, drawn independently.
        temperature: above 0; log-probabilities are divided by it.
        top_k: draw among that many likeliest tokens; 0 for all.
        top_p: draw among the fewest likeliest tokens that together have this probability (nucleus sampling, Holtzman et
            al., 2020, https://arxiv.org/abs/1904.09751); 1 for all.
        image_ids: a number an image; its place in the batch by default.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory slots that count; None for all.
        return_attention: also return where each token looked.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id that fills up ended captions.

    Example:
        A model that says "a" (0.5), "the" (0.3), "one" (0.2): with `top_p=0.6` only "a" and "the" are drawn, as 5 to 3;
        `top_k=1` is greedy; with `temperature=0.5` the odds are 25 : 9 : 4. `draws=3` gives `all_tokens` of shape
        [batch, 3, length].
    """
    predictor = Predictor(model, variables, features, memory_mask)
    ids = jnp.arange(predictor.batch) if image_ids is None else image_ids
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def choose(log_probs: LogProbs, step: Int[Array, ""]) -> Int[Array, "batch rows"]:
        kept = nucleus(keep_top_k(log_probs / temperature, top_k), top_p)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys, step)
        # The largest of log-probabilities plus Gumbel noise is a draw; its noise is the image's own.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, kept.shape[1:]))(step_keys)
        return (kept + noise).argmax(-1)

    decoded = roll_out(
        predictor,
        choose,
        rows=draws,
        max_length=max_length,
        constraints=constraints,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    if return_attention:
        decoded = decoded.replace(all_attention=predictor.attention(decoded.all_tokens, bos_id, pad_id))
    return decoded


def keep_top_k(log_probs: LogProbs, count: int) -> LogProbs:
    """-inf for all but the `count` likeliest tokens (and ties with the last); 0 keeps all."""
    if count <= 0 or count >= log_probs.shape[-1]:
        return log_probs
    least = jax.lax.top_k(log_probs, count)[0][..., -1:]
    return jnp.where(log_probs >= least, log_probs, -jnp.inf)


def nucleus(log_probs: LogProbs, mass: float | Float[Array, ""]) -> LogProbs:
    """-inf for all but the fewest likeliest tokens that have `mass` of the probability (and ties with the last).

    Finds the probability of the last token kept by bisection on its bits, a bit a pass over the vocabulary, where
    sorting would take longer.
    """
    if isinstance(mass, float) and mass >= 1.0:
        return log_probs
    probs = jax.nn.softmax(log_probs, axis=-1)
    bits = jax.lax.bitcast_convert_type(
        probs, jnp.int32
    )  # ordered as the probabilities are, for these are not negative

    def refine(i: Int[Array, ""], least: Int[Array, "batch rows"]) -> Int[Array, "batch rows"]:
        higher = least | (1 << (29 - i))  # 1.0 has no bit above the 29th
        enough = jnp.where(bits >= higher[..., None], probs, 0.0).sum(-1) >= mass
        return jnp.where(enough, higher, least)

    least = jax.lax.fori_loop(0, 30, refine, jnp.zeros(log_probs.shape[:2], jnp.int32))
    return jnp.where(bits >= least[..., None], log_probs, -jnp.inf)
