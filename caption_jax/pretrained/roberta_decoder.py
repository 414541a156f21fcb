"""Initialises a decoder from RoBERTa (Rothe et al., 2020, https://arxiv.org/abs/1907.12461).

A post-norm `Decoder` with RoBERTa's width, number of heads, feed-forward width and activation is equivalent to RoBERTa
with a causal mask and, in each layer, cross-attention to the image. Everything except the cross-attention and its norm
is initialised from RoBERTa.
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

# Activations of `caption_jax.models.decoder`, by their names in RoBERTa's config.json.
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Module paths within a layer, ours to RoBERTa's.
_PARTS = {
    "self_attention/out": "attention/output/dense",
    "self_attention_norm": "attention/output/LayerNorm",
    "feed_forward/expand": "intermediate/dense",
    "feed_forward/contract": "output/dense",
    "feed_forward_norm": "output/LayerNorm",
}


def check_shape(sizes: Mapping[str, Any], decoder: DecoderSpec, max_length: int) -> None:
    """Checks that a decoder can be initialised from a RoBERTa model.

    Args:
        sizes: settings of the RoBERTa model, from `load_roberta_settings`.
        decoder: `config.model.decoder`.
        max_length: maximum number of tokens per caption.

    Raises:
        WeightsError: the decoder does not match the RoBERTa model. The message lists the keys to change.
    """
    activation = _ACTIVATIONS.get(sizes["hidden_act"])
    if activation is None:
        raise WeightsError(
            f"config.model.decoder.weights={decoder.weights} has the unsupported activation {sizes['hidden_act']!r}; "
            f"expected one of {', '.join(_ACTIVATIONS)}"
        )
    expected = {
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
        for key, value in expected.items()
        if not _is_equal(getattr(decoder, key), value)
    ]
    if decoder.layers > sizes["num_hidden_layers"]:
        remedies.append(f"layers={sizes['num_hidden_layers']} at most, not {decoder.layers}")
    if remedies:
        raise WeightsError(
            f"config.model.decoder.weights={decoder.weights} requires, in config.model.decoder, {'; '.join(remedies)} "
            "(see configs/coco_roberta_decoder.py for roberta-base)"
        )
    max_positions = sizes["max_position_embeddings"] - sizes["pad_token_id"] - 1
    if max_length > max_positions:
        raise WeightsError(
            f"config.data.max_length={max_length} is too long: config.model.decoder.weights={decoder.weights} has "
            f"positions for {max_positions} tokens"
        )


def initialise_from_roberta(params: PyTree, name: str, full_ids: Int[np.ndarray, " vocabulary"]) -> PyTree:
    """Replaces decoder parameters with the corresponding parameters of a RoBERTa model, and logs which are replaced.

    Args:
        params: parameters of a `Decoder` that passes `check_shape`.
        name: as in `load_roberta`.
        full_ids: RoBERTa's id for each token of the decoder's vocabulary.

    Raises:
        WeightsError: a parameter has a different shape.
    """
    roberta = load_roberta(name)
    flat = traverse_util.flatten_dict(params, sep="/")
    layers = len({path.split("/")[0] for path in flat if path.startswith("layer_")})
    copied = convert_decoder_params(roberta, layers, len(flat["position"]), full_ids)
    for path, value in copied.items():
        if flat[path].shape != value.shape:
            raise WeightsError(f"{roberta.source}: decoder/{path} has shape {flat[path].shape}, not {value.shape}")
        flat[path] = jnp.asarray(value)
    initialised = [path for path in flat if path not in copied]
    logging.info("decoder: the first %d of %d layers of %s", layers, roberta.sizes.num_hidden_layers, roberta.source)
    for origin, paths in (("copied", copied), ("newly initialised", initialised)):
        logging.info("decoder: %d arrays %s: %s", len(paths), origin, ", ".join(sorted(paths)))
    return traverse_util.unflatten_dict(flat, sep="/")


def convert_decoder_params(
    roberta: PretrainedText, layers: int, length: int, full_ids: Int[np.ndarray, " vocabulary"]
) -> dict[str, np.ndarray]:
    """Converts parameters of a RoBERTa model to decoder parameters.

    The token type embedding, which RoBERTa adds to every token, is added to the position embeddings, because the token
    embedding is tied to the output layer. RoBERTa's positions start at the pad id + 1.

    Args:
        roberta: the RoBERTa model.
        layers: number of decoder layers.
        length: number of decoder positions.
        full_ids: RoBERTa's id for each token of the decoder's vocabulary.

    Returns:
        Decoder parameters by path.
    """
    flat = traverse_util.flatten_dict(roberta.params, sep="/")
    first = roberta.sizes.pad_token_id + 1
    positions = flat["embeddings/position_embeddings/embedding"][first : first + length]
    arrays = {
        "embedding": flat["embeddings/word_embeddings/embedding"][full_ids],
        "position": positions + flat["embeddings/token_type_embeddings/embedding"][0],
        "embedding_norm/scale": flat["embeddings/LayerNorm/scale"],
        "embedding_norm/bias": flat["embeddings/LayerNorm/bias"],
    }
    if roberta.output_bias is not None:
        arrays["output_bias"] = roberta.output_bias[full_ids]
    for number in range(layers):
        source, target = f"encoder/layer/{number}/", f"layer_{number}/"
        for leaf in ("kernel", "bias"):
            qkv = [flat[f"{source}attention/self/{part}/{leaf}"] for part in ("query", "key", "value")]
            arrays[f"{target}self_attention/qkv/{leaf}"] = np.concatenate(qkv, axis=-1)
        for ours, reference in _PARTS.items():
            for leaf in ("scale", "bias") if ours.endswith("norm") else ("kernel", "bias"):
                arrays[f"{target}{ours}/{leaf}"] = flat[f"{source}{reference}/{leaf}"]
    return arrays


def _is_equal(actual: Any, expected: Any) -> bool:
    return math.isclose(actual, expected, rel_tol=1e-3) if isinstance(expected, float) else actual == expected
