"""A decoder with weights from RoBERTa matches RoBERTa with a causal mask."""

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
FULL_IDS = np.array([0, 1, 2, 3, 5, 8, 13, 21, 34, 39])  # RoBERTa's ids of the decoder's tokens
TOKENS = np.array([[0, 4, 9, 6, 6, 2], [0, 8, 5, 7, 3, 4]])
MEMORY = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)


def make_decoder(pretrained: PretrainedText) -> tuple[Decoder, dict]:
    """Returns a decoder and its parameters, in which cross-attention outputs zeros.

    Parameters that RoBERTa does not have are random.
    """
    settings = pretrained.sizes
    decoder = Decoder(
        len(FULL_IDS),
        layers=settings.num_hidden_layers,
        width=settings.hidden_size,
        heads=settings.num_attention_heads,
        feed_forward=settings.intermediate_size,
        norm="post",
        norm_epsilon=settings.layer_norm_eps,
        activation="gelu",
        max_length=8,
    )
    params = jax.jit(decoder.init)(jax.random.key(0), TOKENS[:, None], MEMORY)["params"]
    flat = traverse_util.flatten_dict(params, sep="/")
    flat |= {path: jnp.zeros_like(value) for path, value in flat.items() if "/cross_attention/out/" in path}
    flat |= convert_decoder_params(pretrained, decoder.layers, 8, FULL_IDS)
    return decoder, traverse_util.unflatten_dict(flat, sep="/")


def apply_causal_roberta(pretrained: PretrainedText) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies RoBERTa's layers to `TOKENS` with a causal mask.

    Returns:
        The embeddings, the output of the first layer's attention, and the output of the last layer.
    """
    settings, ids = pretrained.sizes, FULL_IDS[TOKENS]
    positions = np.broadcast_to(np.arange(ids.shape[1]) + settings.pad_token_id + 1, ids.shape)
    mask = np.tril(np.ones((1, ids.shape[1], ids.shape[1]), bool))

    @jax.jit
    def apply_layers(params):
        embedded = x = Embeddings(settings).apply({"params": params["embeddings"]}, ids, positions, False)
        layers = params["encoder"]["layer"]
        attended = Attention(settings).apply({"params": layers["0"]["attention"]}, x, mask, False)
        for index in range(settings.num_hidden_layers):
            x = Layer(settings).apply({"params": layers[str(index)]}, x, mask, False)
        return embedded, attended, x

    return apply_layers(pretrained.params)


def test_embeddings_and_first_self_attention_match_roberta():
    """Compares the layers before the first cross-attention, which RoBERTa does not have."""
    pretrained = load_roberta(str(GOLDEN))
    pretrained = dataclasses.replace(pretrained, sizes=dataclasses.replace(pretrained.sizes, layer_norm_eps=1e-5))
    decoder, params = make_decoder(pretrained)
    apply = jax.jit(functools.partial(decoder.apply, capture_intermediates=True))
    _, state = apply({"params": params}, TOKENS[:, None], MEMORY)
    expected_embedded, expected_attended, _ = apply_causal_roberta(pretrained)
    embedded = state["intermediates"]["embedding_norm"]["__call__"][0][:, 0]
    np.testing.assert_allclose(embedded, expected_embedded, atol=1e-5)
    attended = state["intermediates"]["layer_0"]["self_attention_norm"]["__call__"][0][:, 0]
    np.testing.assert_allclose(attended, expected_attended, atol=1e-5)
    assert np.abs(attended - embedded).max() > 0.1


@pytest.mark.parametrize("batch_size", [1, 2])
def test_logits_match_roberta_if_cross_attention_outputs_zeros(batch_size):
    """With unit scale and zero bias in the norms after self-attention, those after cross-attention have no effect."""
    pretrained = load_roberta(str(GOLDEN))
    for layer in pretrained.params["encoder"]["layer"].values():
        width = pretrained.sizes.hidden_size
        layer["attention"]["output"]["LayerNorm"] = {"scale": np.ones(width), "bias": np.zeros(width)}
    decoder, params = make_decoder(pretrained)
    logits = decoder.apply({"params": params}, TOKENS[:batch_size, None], MEMORY[:batch_size]).logits[:, 0]
    hidden = apply_causal_roberta(pretrained)[-1][:batch_size]
    embedding = pretrained.params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_allclose(logits, hidden @ embedding[FULL_IDS].T + pretrained.output_bias[FULL_IDS], atol=1e-5)
    assert np.abs(pretrained.output_bias).max() > 0.01


def test_the_token_type_embedding_is_added_to_the_position_embeddings():
    pretrained = load_roberta(str(GOLDEN))
    embeddings = pretrained.params["embeddings"]
    arrays = convert_decoder_params(pretrained, 1, 5, FULL_IDS)
    np.testing.assert_array_equal(arrays["embedding"], embeddings["word_embeddings"]["embedding"][FULL_IDS])
    expected = embeddings["position_embeddings"]["embedding"][2:7] + embeddings["token_type_embeddings"]["embedding"][0]
    np.testing.assert_array_equal(arrays["position"], expected)
    assert not any("cross_attention" in path or path.startswith("layer_1") for path in arrays)


VALID_SETTINGS = {
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
def test_incompatible_decoder_settings_are_rejected(changes, message):
    settings, decoder = load_roberta_settings(str(GOLDEN)), default_config().model.decoder
    decoder.update(VALID_SETTINGS)
    check_shape(settings, decoder, max_length=12)
    with pytest.raises(WeightsError, match="has positions for 12 tokens"):
        check_shape(settings, decoder, max_length=13)
    with pytest.raises(WeightsError, match="activation 'relu'"):
        check_shape({**settings, "hidden_act": "relu"}, decoder, max_length=12)
    decoder.update(changes)
    with pytest.raises(WeightsError, match=message):
        check_shape(settings, decoder, max_length=12)
