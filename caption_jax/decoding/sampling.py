"""Caption sampling with temperature, top-k and top-p (nucleus), and multiple samples per image."""

from __future__ import annotations

import math
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


def sample(  # noqa: PLR0913 - keyword-only: sampler settings and the arguments common to all methods
    model: Any,
    variables: Any,
    features: Any,
    key: Key[Array, ""],
    *,
    max_length: int,
    num_samples: int = 1,
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
    """Samples captions token by token from the model's distribution, optionally with temperature, top-k and top-p.

    Can be traced by `jax.jit`. Constraints are applied first, then temperature, top-k and top-p. The samples for an
    image depend only on `key` and its entry in `image_ids`, not on the rest of the batch. The returned
    log-probabilities are computed at temperature 1, without truncation.

    Args:
        model: a captioner, or a sequence of captioners (an ensemble, whose probabilities are averaged).
        variables: variables of the model (for an ensemble, a sequence with one entry per model).
        features: image features from `ImageCaptioningModel.encode_images`, or only the memory array (for an ensemble,
            a sequence with one entry per model).
        key: PRNG key.
        max_length: maximum caption length in tokens, including <s> and </s>; the decoder's own limit also applies.
        num_samples: number of independent samples per image.
        temperature: divisor of the log-probabilities, above 0.
        top_k: sample from the `top_k` most probable tokens; 0 disables the limit.
        top_p: sample from the smallest set of most probable tokens whose total probability reaches `top_p` (nucleus
            sampling, Holtzman et al., 2020, https://arxiv.org/abs/1904.09751); 1 disables the limit.
        image_ids: one integer per image; the index in the batch if None.
        constraints: see `caption_jax.decoding.constraints`.
        memory_mask: True for memory positions to attend to; all positions if None.
        return_attention: also return the cross-attention of each token.
        bos_id: id of <s>.
        eos_id: id of </s>.
        pad_id: id of <pad>, which pads finished captions.

    Example:
        Suppose the model predicts "a" (0.5), "the" (0.3) and "one" (0.2). `top_p=0.6` samples "a" and "the" with odds
        5:3, `top_k=1` is greedy decoding, and `temperature=0.5` changes the odds to 25:9:4. With `num_samples=3`, the
        shape of `all_tokens` is [batch, 3, length].
    """
    predictor = Predictor(model, variables, features, memory_mask)
    ids = jnp.arange(predictor.batch_size) if image_ids is None else image_ids
    image_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

    def sample_tokens(log_probs: LogProbs, step: Int[Array, ""]) -> Int[Array, "batch rows"]:
        truncated = keep_top_p(keep_top_k(log_probs / temperature, top_k), top_p)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(image_keys, step)
        uniforms = jax.vmap(lambda key: jax.random.uniform(key, truncated.shape[1:2]))(step_keys)  # own ones per image
        return draw_tokens(truncated, uniforms)

    decoded = roll_out(
        predictor,
        sample_tokens,
        rows=num_samples,
        max_length=max_length,
        constraints=constraints,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    if return_attention:
        decoded = decoded.replace(all_attention=predictor.compute_attention(decoded.all_tokens, bos_id, pad_id))
    return decoded


def draw_tokens(log_probs: LogProbs, uniforms: Float[Array, "batch rows"]) -> Int[Array, "batch rows"]:
    """Draws one token per row by inverting the cumulative distribution, in blocks of tokens and then inside a block.

    This needs one random number per row. The Gumbel-max trick needs one per token of the vocabulary, which took a tenth
    of the time of a training step on rewards on a CPU.

    Args:
        log_probs: log-probabilities up to a constant per row; -inf for tokens that are never drawn.
        uniforms: uniform random numbers in [0, 1).
    """
    # Without barriers, XLA may compute an element again for each cumulative sum that contains it.
    probs = jax.lax.optimization_barrier(jnp.exp(log_probs - log_probs.max(-1, keepdims=True)))
    size = math.isqrt(probs.shape[-1] - 1) + 1
    blocks = jnp.pad(probs, ((0, 0), (0, 0), (0, -probs.shape[-1] % size)))
    blocks = blocks.reshape(*probs.shape[:2], -1, size)
    ends = jnp.cumsum(jax.lax.optimization_barrier(blocks.sum(-1)), axis=-1)
    target = uniforms[..., None] * ends[..., -1:]
    block = (ends <= target).sum(-1, keepdims=True)  # the first that ends after the target, so it is not empty
    start = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0), axis=-1), 0)
    chosen = jax.lax.optimization_barrier(jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :])
    inside = jnp.cumsum(chosen, axis=-1)
    # The rounding errors of both sums differ, so the target may be just after the end of the block.
    target = jnp.minimum(target - start, inside[..., -1:] * (1 - 2**-23))
    return (block * size)[..., 0] + (inside <= target).sum(-1)


def keep_top_k(log_probs: LogProbs, count: int) -> LogProbs:
    """Sets all except the `count` most probable tokens to -inf; 0 disables the limit.

    Ties with the last of these tokens are included.
    """
    if count <= 0 or count >= log_probs.shape[-1]:
        return log_probs
    threshold = jax.lax.top_k(log_probs, count)[0][..., -1:]
    return jnp.where(log_probs >= threshold, log_probs, -jnp.inf)


def keep_top_p(log_probs: LogProbs, mass: float | Float[Array, ""]) -> LogProbs:
    """Sets tokens outside the nucleus of probability `mass` to -inf. Ties with its last token are included.

    Finds the smallest probability in the nucleus by bisection on its bits, one bit per pass over the vocabulary, which
    is faster than sorting.
    """
    if isinstance(mass, float) and mass >= 1.0:
        return log_probs
    probs = jax.nn.softmax(log_probs, axis=-1)
    # For nonnegative floats, the order of the bit patterns is the order of the values.
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def refine(i: Int[Array, ""], threshold: Int[Array, "batch rows"]) -> Int[Array, "batch rows"]:
        raised = threshold | (1 << (29 - i))  # 1.0 has no bit above bit 29
        has_mass = jnp.where(bits >= raised[..., None], probs, 0.0).sum(-1) >= mass
        return jnp.where(has_mass, raised, threshold)

    threshold = jax.lax.fori_loop(0, 30, refine, jnp.zeros(log_probs.shape[:2], jnp.int32))
    return jnp.where(bits >= threshold[..., None], log_probs, -jnp.inf)
