"""A decoder initialised from RoBERTa matches RoBERTa with a causal mask."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from caption_jax.config import default_config
from caption_jax.errors import WeightsError
from caption_jax.models.decoder import Decoder
from caption_jax.models.roberta import Attention, Embeddings, Layer
from caption_jax.pretrained.roberta_decoder import check_shape, convert_decoder_params
from caption_jax.pretrained.roberta_weights import PretrainedText, load_roberta, load_roberta_settings

# A random RobertaForMaskedLM, saved by PyTorch: 2 layers, width 16, 4 heads, 40 tokens.
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "roberta_torch"
FULL_IDS = np.array([0, 1, 2, 3, 5, 8, 13, 21, 34, 39])  # full ids of the decoder's tokens
TOKENS = np.array([[0, 4, 9, 6, 6, 2], [0, 8, 5, 7, 3, 4]])
MEMORY = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)


def decoder_of(text: PretrainedText, **options) -> tuple[Decoder, dict]:
    """Returns the decoder and its parameters. Those not from RoBERTa are random, and cross-attention outputs zero."""
    sizes = text.sizes
    shape = {"heads": sizes.num_attention_heads, "feed_forward": sizes.intermediate_size, **options}
    decoder = Decoder(
        len(FULL_IDS),
        layers=sizes.num_hidden_layers,
        width=sizes.hidden_size,
        norm="post",
        norm_epsilon=sizes.layer_norm_eps,
        activation="gelu",
        max_length=8,
        **shape,
    )
    params = jax.jit(decoder.init)(jax.random.key(0), TOKENS[:, None], MEMORY)["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    flat |= {path: jnp.zeros_like(value) for path, value in flat.items() if "/cross_attention/out/" in path}
    converted = convert_decoder_params(text, decoder.layers, 8, FULL_IDS)
    return decoder, traverse_util.unflatten_dict(flat | converted, sep="/")


def causal_roberta(text: PretrainedText) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies RoBERTa's layers to the tokens with a causal mask.

    Returns:
        The embeddings, the output of the first layer's attention, and the output of the last layer.
    """
    ids = FULL_IDS[TOKENS]
    positions = np.broadcast_to(np.arange(ids.shape[1]) + text.sizes.pad_token_id + 1, ids.shape)
    visible = np.tril(np.ones((1, ids.shape[1], ids.shape[1]), bool))

    @jax.jit
    def run(params):
        embedded = x = Embeddings(text.sizes).apply({"params": params["embeddings"]}, ids, positions, False)
        layers = params["encoder"]["layer"]
        attended = Attention(text.sizes).apply({"params": layers["0"]["attention"]}, x, visible, False)
        for number in range(text.sizes.num_hidden_layers):
            x = Layer(text.sizes).apply({"params": layers[str(number)]}, x, visible, False)
        return embedded, attended, x

    return run(text.params)


def test_embeddings_and_first_self_attention_match_roberta():
    """Compares everything before the first cross-attention, which RoBERTa does not have."""
    text = load_roberta(str(GOLDEN))
    text = dataclasses.replace(text, sizes=dataclasses.replace(text.sizes, layer_norm_eps=1e-5))
    decoder, params = decoder_of(text)
    run = jax.jit(functools.partial(decoder.apply, capture_intermediates=True))
    _, ours = run({"params": params}, TOKENS[:, None], MEMORY)
    ours, (expected, attended, _) = ours["intermediates"], causal_roberta(text)
    embedded = ours["embedding_norm"]["__call__"][0][:, 0]
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    our_attended = ours["layer_0"]["self_attention_norm"]["__call__"][0][:, 0]
    np.testing.assert_allclose(our_attended, attended, atol=1e-5)
    assert np.abs(our_attended - embedded).max() > 0.1


@pytest.mark.parametrize("sentences", [1, 2])
def test_logits_without_cross_attention_match_roberta(sentences):
    """With default norms after self-attention, the norm after a zero cross-attention has no effect."""
    text = load_roberta(str(GOLDEN))
    for layer in text.params["encoder"]["layer"].values():
        width = text.sizes.hidden_size
        layer["attention"]["output"]["LayerNorm"] = {"scale": np.ones(width), "bias": np.zeros(width)}
    decoder, params = decoder_of(text)
    logits = decoder.apply({"params": params}, TOKENS[:sentences, None], MEMORY[:sentences]).logits[:, 0]
    hidden = causal_roberta(text)[-1][:sentences]
    embedding = text.params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_allclose(logits, hidden @ embedding[FULL_IDS].T + text.output_bias[FULL_IDS], atol=1e-5)
    assert np.abs(text.output_bias).max() > 0.01


def test_the_token_type_embedding_is_added_to_the_positions():
    text = load_roberta(str(GOLDEN))
    embeddings = text.params["embeddings"]
    arrays = convert_decoder_params(text, 1, 5, FULL_IDS)
    np.testing.assert_array_equal(arrays["embedding"], embeddings["word_embeddings"]["embedding"][FULL_IDS])
    expected = embeddings["position_embeddings"]["embedding"][2:7] + embeddings["token_type_embeddings"]["embedding"][0]
    np.testing.assert_array_equal(arrays["position"], expected)
    assert not any("cross_attention" in path for path in arrays) and not any(
        path.startswith("layer_1") for path in arrays
    )


VALID = {
    "layers": 2,
    "width": 16,
    "heads": 4,
    "feed_forward": 24,
    "norm": "post",
    "norm_epsilon": 1e-12,
    "activation": "gelu",
    "weights": "here",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"in config\.model\.decoder, width=16, not 32 \("),
        ({"heads": 2, "feed_forward": 64}, r"heads=4, not 2; feed_forward=24, not 64"),
        ({"layers": 3}, "layers=2 at most, not 3"),
        ({"norm": "pre", "activation": "gelu_tanh"}, "norm=post, not pre; activation=gelu, not gelu_tanh"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon=1e-12, not 1e-06"),
        ({"positions": "sinusoidal"}, "positions=learned"),
    ],
)
def test_shape_mismatches_are_reported(changes, message):
    sizes, decoder = load_roberta_settings(str(GOLDEN)), default_config().model.decoder
    decoder.update(VALID)
    check_shape(sizes, decoder, max_length=12)
    with pytest.raises(WeightsError, match="has positions for 12 tokens"):
        check_shape(sizes, decoder, max_length=13)
    with pytest.raises(WeightsError, match="activation 'relu'"):
        check_shape({**sizes, "hidden_act": "relu"}, decoder, max_length=12)
    decoder.update(changes)
    with pytest.raises(WeightsError, match=message):
        check_shape(sizes, decoder, max_length=12)
