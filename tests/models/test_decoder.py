"""`Decoder` and `DecoderLayer`: comparison with PyTorch, masks and the cache."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from caption_jax.models.decoder import Decoder, DecoderLayer, make_sinusoids
from caption_jax.ops.segments import Segments

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "decoder_layer_torch.npz"
WIDTH, HEADS, HIDDEN = 8, 2, 12


def make_decoder(seed=0, **settings):
    settings = {"layers": 2, "norm": "pre", "positions": "learned", "max_length": 9, **settings}
    decoder = Decoder(vocabulary_size=11, width=WIDTH, heads=HEADS, feed_forward=HIDDEN, **settings)
    rng = np.random.default_rng(seed)
    memory = jnp.asarray(rng.normal(size=(2, 5, WIDTH)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 11, size=(2, 3, 9)))
    return decoder, random_variables(decoder, tokens, memory, seed=seed), tokens, memory


def run_decoder(decoder, variables, tokens, memory, mask=None, key=None, attention=False):
    """Runs one compiled pass without a cache. With a key, it is a training pass."""

    @jax.jit
    def apply(variables, tokens, memory, mask, key):
        rngs = None if key is None else {"dropout": key}
        train = key is not None
        return decoder.apply(
            variables, tokens, memory, memory_mask=mask, train=train, rngs=rngs, return_attention=attention
        )

    return apply(variables, tokens, memory, mask, key)


def make_layer_inputs():
    """Returns weights with PyTorch's names and layouts, tokens and memory [batch, length, width], and a memory mask."""
    rng = np.random.default_rng(7)
    shapes = {
        "self_attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "self_attn.in_proj_bias": (3 * WIDTH,),
        "self_attn.out_proj.weight": (WIDTH, WIDTH),
        "self_attn.out_proj.bias": (WIDTH,),
        "multihead_attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "multihead_attn.in_proj_bias": (3 * WIDTH,),
        "multihead_attn.out_proj.weight": (WIDTH, WIDTH),
        "multihead_attn.out_proj.bias": (WIDTH,),
        "linear1.weight": (HIDDEN, WIDTH),
        "linear1.bias": (HIDDEN,),
        "linear2.weight": (WIDTH, HIDDEN),
        "linear2.bias": (WIDTH,),
        **{f"norm{i}.{leaf}": (WIDTH,) for i in (1, 2, 3) for leaf in ("weight", "bias")},
    }
    weights = {name: (0.4 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    tokens = rng.normal(size=(2, 6, WIDTH)).astype(np.float32)
    memory = rng.normal(size=(2, 5, WIDTH)).astype(np.float32)
    return weights, tokens, memory, np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool)


def convert_torch_weights(weights):
    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def slice_projection(name, part):
        return {"kernel": weights[f"{name}.in_proj_weight"][part].T, "bias": weights[f"{name}.in_proj_bias"][part]}

    norms = ("self_attention_norm", "cross_attention_norm", "feed_forward_norm")
    return {
        "self_attention": {"qkv": slice_projection("self_attn", slice(None)), "out": dense("self_attn.out_proj")},
        "cross_attention": {
            "query": slice_projection("multihead_attn", slice(WIDTH)),
            "key_value": slice_projection("multihead_attn", slice(WIDTH, None)),
            "out": dense("multihead_attn.out_proj"),
        },
        "feed_forward": {"expand": dense("linear1"), "contract": dense("linear2")},
        **{
            name: {"scale": weights[f"norm{i}.weight"], "bias": weights[f"norm{i}.bias"]}
            for i, name in enumerate(norms, start=1)
        },
    }


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_layer_matches_torch(norm):
    weights, tokens, memory, mask = make_layer_inputs()
    layer = DecoderLayer(WIDTH, HEADS, HIDDEN, norm=norm)
    params = {"params": convert_torch_weights(weights)}
    output, _, attention = jax.jit(layer.apply)(params, tokens[:, None], memory, memory_mask=mask)
    golden = np.load(GOLDEN)
    np.testing.assert_allclose(output[:, 0], golden[norm], atol=2e-5)
    np.testing.assert_allclose(attention[:, 0].mean(1), golden[f"{norm}_attention"], atol=2e-5)


@pytest.mark.torch
def test_the_golden_file_matches_torch():
    torch = pytest.importorskip("torch")
    weights, tokens, memory, mask = make_layer_inputs()
    outputs = {}
    for norm in ("pre", "post"):
        layer = torch.nn.TransformerDecoderLayer(
            WIDTH,
            HEADS,
            HIDDEN,
            dropout=0.0,
            activation=lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=norm == "pre",
        )
        layer.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        inner = layer.multihead_attn.forward

        def record_attention(*args, inner=inner, norm=norm, **kwargs):
            output, attention = inner(*args, **{**kwargs, "need_weights": True})
            outputs[f"{norm}_attention"] = attention.detach().numpy()
            return output, attention

        layer.multihead_attn.forward = record_attention
        causal = torch.triu(torch.ones(6, 6, dtype=bool), 1)
        with torch.no_grad():
            output = layer(
                torch.tensor(tokens),
                torch.tensor(memory),
                tgt_mask=causal,
                memory_key_padding_mask=torch.tensor(~mask),
            )
        outputs[norm] = output.numpy()
    if not GOLDEN.exists():
        np.savez_compressed(GOLDEN, **outputs)
    golden = np.load(GOLDEN)
    for name, value in outputs.items():
        np.testing.assert_allclose(value, golden[name], atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "positions", "chunks"),
    [
        ("pre", "learned", (1,) * 9),
        ("post", "sinusoidal", (4, 1, 4)),
        pytest.param("pre", "sinusoidal", (1,) * 9, marks=pytest.mark.slow),
        pytest.param("post", "learned", (4, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_cached_decoding_matches_teacher_forcing(norm, positions, chunks):
    decoder, variables, tokens, memory = make_decoder(norm=norm, positions=positions)
    mask = jnp.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
    full = run_decoder(decoder, variables, tokens, memory, mask, attention=True)
    cache = decoder.apply(variables, memory, memory_mask=mask, rows=3, method="start_cache")
    step = jax.jit(lambda tokens, cache: decoder.apply(variables, tokens, cache=cache, return_attention=True))
    logits, attention, start = [], [], 0
    for length in chunks:
        output = step(tokens[..., start : start + length], cache)
        cache, start = output.cache, start + length
        logits.append(output.logits)
        attention.append(output.attention)
    np.testing.assert_allclose(jnp.concatenate(logits, 2), full.logits, atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate(attention, 4), full.attention, atol=1e-5)


def test_the_cache_is_reordered_with_the_captions():
    """With beams reordered at each step, the logits match a full pass over each beam."""
    decoder, variables, tokens, memory = make_decoder()
    cache = decoder.apply(variables, memory, rows=3, method="start_cache")
    step = jax.jit(lambda tokens, cache: decoder.apply(variables, tokens, cache=cache))
    full = jax.jit(lambda tokens: decoder.apply(variables, tokens, memory).logits)
    rng, captions = np.random.default_rng(1), np.array(tokens)
    for t in range(9):
        captions[..., t] = tokens[..., t]
        output = step(jnp.asarray(captions[..., t : t + 1]), cache)
        np.testing.assert_allclose(output.logits[:, :, 0], full(captions)[:, :, t], atol=1e-5)
        parents = rng.integers(0, 3, size=(2, 3))
        cache = output.cache.reorder(jnp.asarray(parents))
        captions = np.take_along_axis(captions, parents[..., None], axis=1)


def test_captions_of_an_image_are_independent():
    decoder, variables, tokens, memory = make_decoder()
    together = run_decoder(decoder, variables, tokens, memory).logits
    apply = jax.jit(lambda tokens: decoder.apply(variables, tokens, memory).logits)
    for caption in range(3):
        separate = apply(tokens[:, caption : caption + 1])
        np.testing.assert_allclose(together[:, caption : caption + 1], separate, atol=1e-5)


def test_masked_memory_equals_absent_memory():
    decoder, variables, tokens, memory = make_decoder()
    mask = jnp.array([[True, True, False, True, False]] * 2)
    masked = run_decoder(decoder, variables, tokens, memory, mask, attention=True)
    absent = run_decoder(decoder, variables, tokens, memory[:, np.array([0, 1, 3])])
    np.testing.assert_allclose(masked.logits, absent.logits, atol=1e-5)
    assert (np.asarray(masked.attention)[..., ~mask[0]] == 0).all()
    np.testing.assert_allclose(masked.attention.sum(-1), 1, atol=1e-5)


def test_positions_change_the_logits_of_equal_tokens():
    decoder, variables, tokens, memory = make_decoder(positions="sinusoidal")
    equal_tokens = jnp.full_like(tokens, 4)
    logits = run_decoder(decoder, variables, equal_tokens, memory).logits
    assert np.abs(np.diff(logits, axis=2)).max(-1).min() > 1e-3
    signals = make_sinusoids(40, 8)
    assert signals.shape == (40, 8)
    assert len(np.unique(signals.round(5), axis=0)) == 40


def test_bfloat16_logits_are_float32_and_close_to_float32_results():
    decoder, variables, tokens, memory = make_decoder()
    bfloat16_decoder = Decoder(11, 2, WIDTH, HEADS, HIDDEN, max_length=9, dtype=jnp.bfloat16)
    expected = run_decoder(decoder, variables, tokens, memory).logits
    output = run_decoder(bfloat16_decoder, variables, tokens, memory)
    assert output.logits.dtype == jnp.float32
    assert not np.array_equal(output.logits, expected)
    np.testing.assert_allclose(output.logits, expected, atol=0.1)
    initial = jax.eval_shape(bfloat16_decoder.init, jax.random.key(0), tokens, memory)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial))


def test_an_untrained_decoder_predicts_a_nearly_uniform_distribution():
    decoder = Decoder(500, 3, 64, 4, 128)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 500, size=(2, 2, 20)))
    memory = jnp.asarray(rng.normal(size=(2, 9, 64)), jnp.float32)
    variables = jax.jit(decoder.init)(jax.random.key(0), tokens, memory)
    log_probs = jax.nn.log_softmax(run_decoder(decoder, variables, tokens, memory).logits)
    input_log_probs = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)  # inputs are not more likely
    for values in (log_probs, input_log_probs):
        assert abs(float(values.mean()) + np.log(500)) < 1
    assert 0.05 < float(log_probs.std()) < 1


def test_dropout_is_active_in_training_only():
    decoder, variables, tokens, memory = make_decoder(dropout=0.3)
    deterministic = run_decoder(decoder, variables, tokens, memory).logits
    np.testing.assert_array_equal(deterministic, run_decoder(decoder, variables, tokens, memory).logits)
    with_dropout = [run_decoder(decoder, variables, tokens, memory, key=jax.random.key(k)).logits for k in (0, 1)]
    assert not np.allclose(with_dropout[0], with_dropout[1]) and not np.allclose(with_dropout[0], deterministic)


def test_tokens_except_the_first_are_hidden_in_training():
    decoder, variables, tokens, memory = make_decoder(token_dropout=0.3)
    expected = run_decoder(*make_decoder()).logits
    np.testing.assert_array_equal(run_decoder(decoder, variables, tokens, memory).logits, expected)
    trained = [run_decoder(decoder, variables, tokens, memory, key=jax.random.key(k)).logits for k in (0, 1)]
    assert not np.allclose(trained[0], expected) and not np.allclose(trained[0], trained[1])

    def embed(tokens, segments, **options):
        rngs = {"dropout": jax.random.key(0)}
        return np.asarray(decoder.apply(variables, tokens, segments, rngs=rngs, method="_embed", **options))

    tokens = jnp.full((50, 4, 9), 7)
    segments = Segments.one_per_row(tokens.shape)
    hidden = (embed(tokens, segments, train=True) != embed(tokens, segments, train=False)).any(-1)
    assert not hidden[..., 0].any() and abs(hidden[..., 1:].mean() - 0.3) < 0.04


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "middle"}, "decoder.norm"),
        ({"positions": "none"}, "decoder.positions"),
        ({"max_length": 8}, "max_length=8"),
    ],
)
def test_invalid_settings_are_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        make_decoder(**settings)
    with pytest.raises(ValueError, match="heads=3"):
        layer = DecoderLayer(WIDTH, 3, HIDDEN)
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 1, 2, WIDTH)), jnp.zeros((1, 2, WIDTH)))
