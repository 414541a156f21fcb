"""A decoder that starts from RoBERTa: which of its weights go where (Rothe et al., 2020, https://arxiv.org/abs/1907.12461).

A `Decoder` of RoBERTa's shape (post-norm, the same width, heads, feed-forward and activation) is RoBERTa with a causal
mask and, in each layer, cross-attention to the image. All but that cross-attention and its norm is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util
from jaxtyping import Int

from caption_jax.errors import WeightsError
from caption_jax.pretrained.roberta_weights import PretrainedText, load_roberta

if TYPE_CHECKING:
    from caption_jax.specs import DecoderSpec

PyTree = Any

# What RoBERTa's config.json calls the activations of `caption_jax.models.decoder`.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Where the parts of a layer lie: here, there.
_PARTS = {
    "self_attention/out": "attention/output/dense",
    "self_attention_norm": "attention/output/LayerNorm",
    "feed_forward/expand": "intermediate/dense",
    "feed_forward/contract": "output/dense",
    "feed_forward_norm": "output/LayerNorm",
}


def check_shape(sizes: Mapping[str, Any], decoder: DecoderSpec, max_length: int) -> None:
    """Whether a decoder can start from a RoBERTa.

    Args:
        sizes: of the RoBERTa, from `load_roberta_sizes`.
        decoder: `model.decoder` of a run's spec.
        max_length: tokens of the longest caption.

    Raises:
        WeightsError: it cannot; the message names each key that is in the way, and its remedy.
    """
    activation = _ACTIVATIONS.get(sizes["hidden_act"])
    if activation is None:
        raise WeightsError(
            f"config.model.decoder.weights={decoder.weights} has the activation {sizes['hidden_act']!r}, which this "
            f"decoder lacks: take a RoBERTa with {', '.join(_ACTIVATIONS)}"
        )
    wanted = {
        "width": sizes["hidden_size"],
        "heads": sizes["num_attention_heads"],
        "feed_forward": sizes["intermediate_size"],
        "norm": "post",
        "norm_epsilon": sizes["layer_norm_eps"],
        "activation": activation,
        "positions": "learned",
    }
    remedies = [
        f"{key}={value}, not {getattr(decoder, key)}"
        for key, value in wanted.items()
        if not _same(getattr(decoder, key), value)
    ]
    if decoder.layers > sizes["num_hidden_layers"]:
        remedies.append(f"layers={sizes['num_hidden_layers']} at most, not {decoder.layers}")
    if remedies:
        raise WeightsError(
            f"a decoder that starts from config.model.decoder.weights={decoder.weights} needs, in "
            f"config.model.decoder, {'; '.join(remedies)} (configs/coco_roberta_decoder.py has roberta-base's shape)"
        )
    longest = sizes["max_position_embeddings"] - sizes["pad_token_id"] - 1
    if max_length > longest:
        raise WeightsError(
            f"config.data.max_length={max_length}, but config.model.decoder.weights={decoder.weights} has positions "
            f"for {longest} tokens"
        )


def start_from_roberta(params: PyTree, name: str, full_ids: Int[np.ndarray, " vocabulary"]) -> PyTree:
    """A decoder's fresh parameters with those of a RoBERTa in place of all that it has; the log lists both.

    Args:
        params: of a `Decoder` that `check_shape` found to fit.
        name: as for `load_roberta`.
        full_ids: row of RoBERTa's embedding for each token of the decoder's vocabulary.
    """
    text = load_roberta(name)
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = len({path.split("/")[0] for path in flat if path.startswith("layer_")})
    copied = decoder_arrays(text, layers, len(flat["position"]), full_ids)
    for path, value in copied.items():
        if flat[path].shape != value.shape:
            raise WeightsError(f"{text.source}: decoder/{path} has shape {flat[path].shape}, not {value.shape}")
        flat[path] = jnp.asarray(value)
    fresh = [path for path in flat if path not in copied]
    logging.info("decoder: the first %d of %d layers of %s", layers, text.sizes.num_hidden_layers, text.source)
    for what, paths in (("copied", copied), ("fresh", fresh)):
        logging.info("decoder: %d arrays %s: %s", len(paths), what, ", ".join(sorted(paths)))
    return traverse_util.unflatten_dict(flat, sep="/")


def decoder_arrays(
    text: PretrainedText, layers: int, length: int, full_ids: Int[np.ndarray, " vocabulary"]
) -> dict[str, np.ndarray]:
    """What a decoder of `layers` layers and `length` positions takes from a RoBERTa, by path.

    The vector that RoBERTa adds to every token (its token type) is added to the positions: the word embedding is the
    output layer too. RoBERTa's positions start behind the pad's.
    """
    flat = traverse_util.flatten_dict(text.params, sep="/")
    first = text.sizes.pad_token_id + 1
    positions = flat["embeddings/position_embeddings/embedding"][first : first + length]
    found = {
        "embedding": flat["embeddings/word_embeddings/embedding"][full_ids],
        "position": positions + flat["embeddings/token_type_embeddings/embedding"][0],
        "embedding_norm/scale": flat["embeddings/LayerNorm/scale"],
        "embedding_norm/bias": flat["embeddings/LayerNorm/bias"],
    }
    if text.output_bias is not None:
        found["output_bias"] = text.output_bias[full_ids]
    for number in range(layers):
        theirs, ours = f"encoder/layer/{number}/", f"layer_{number}/"
        for leaf in ("kernel", "bias"):
            joined = [flat[f"{theirs}attention/self/{part}/{leaf}"] for part in ("query", "key", "value")]
            found[f"{ours}self_attention/qkv/{leaf}"] = np.concatenate(joined, axis=-1)
        for here, there in _PARTS.items():
            for leaf in ("scale", "bias") if here.endswith("norm") else ("kernel", "bias"):
                found[f"{ours}{here}/{leaf}"] = flat[f"{theirs}{there}/{leaf}"]
    return found


def _same(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-3) if isinstance(other, float) else one == other
