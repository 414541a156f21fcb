"""RoBERTa compared with transformers' Flax and PyTorch modules."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import roberta_peers as peers
from flax import traverse_util
from roberta_folder import torch_state
from seeded_weights import seeded_weights

from caption_jax.models.roberta import Roberta, RobertaSettings, make_position_ids

for_each_model = pytest.mark.parametrize("name", peers.SETTINGS)


def flatten(tree) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(jax.device_get(tree), sep="/")


def init_seeded(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    return traverse_util.unflatten_dict(seeded_weights(shapes), sep="/")


def compute_hidden_and_gradient(apply, params, mask) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    def loss(params):
        hidden = apply({"params": params})
        return (hidden * peers.make_cotangent(hidden, mask)).sum(), hidden

    gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(hidden), flatten(gradient)


@for_each_model
def test_hidden_states_and_gradients_match_the_golden_file(name):
    golden, settings = np.load(peers.GOLDEN / "roberta_flax.npz"), peers.SETTINGS[name]
    ids, mask = peers.make_text_inputs(settings)
    roberta = Roberta(RobertaSettings(**settings))
    params = init_seeded(roberta, ids, mask)
    hidden, gradient = compute_hidden_and_gradient(lambda variables: roberta.apply(variables, ids, mask), params, mask)
    np.testing.assert_allclose(hidden[mask], golden[f"{name}/hidden"][mask], atol=1e-5)
    subsampled_gradient = np.concatenate([np.ravel(gradient[path])[::11] for path in sorted(gradient)])
    np.testing.assert_allclose(subsampled_gradient, golden[f"{name}/gradient"], atol=1e-5, rtol=1e-5)


def assert_matches_flax_roberta(name: str, *, train: bool) -> None:
    settings = peers.SETTINGS[name]
    ids, mask = peers.make_text_inputs(settings)
    ours, flax_module, inputs = (
        Roberta(RobertaSettings(**settings)),
        peers.flax_module(settings),
        peers.flax_inputs(settings),
    )
    params, rngs = init_seeded(ours, ids, mask), {"dropout": jax.random.key(5)}
    hidden, gradient = compute_hidden_and_gradient(
        lambda v: ours.apply(v, ids, mask, train=train, rngs=rngs), params, mask
    )
    expected, reference = compute_hidden_and_gradient(
        lambda v: flax_module.apply(v, *inputs, deterministic=not train, rngs=rngs)[0], params, mask
    )
    np.testing.assert_allclose(hidden[mask], expected[mask], atol=1e-5)
    for path, value in reference.items():
        np.testing.assert_allclose(gradient[path], value, atol=1e-5, rtol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def require_flax_roberta() -> None:
    pytest.importorskip("transformers.models.roberta.modeling_flax_roberta", reason="transformers 5 has no Flax models")


@for_each_model
@pytest.mark.usefixtures("require_flax_roberta")
def test_hidden_states_and_gradients_match_flax_roberta(name):
    assert_matches_flax_roberta(name, train=False)


@pytest.mark.usefixtures("require_flax_roberta")
def test_initialisation_and_dropout_match_flax_roberta():
    """Equal keys yield equal parameters and dropout masks, so runs that started with Flax RoBERTa can be resumed."""
    name = "two layers"
    settings = peers.SETTINGS[name]
    ours, flax_module, inputs = (
        Roberta(RobertaSettings(**settings)),
        peers.flax_module(settings),
        peers.flax_inputs(settings),
    )
    initial = flatten(jax.jit(ours.init)(jax.random.key(3), *peers.make_text_inputs(settings)))
    reference = flatten(jax.jit(lambda key: flax_module.init(key, *inputs))(jax.random.key(3)))
    assert initial.keys() == reference.keys()
    for path, value in reference.items():
        np.testing.assert_array_equal(initial[path], value, err_msg=path)
    assert_matches_flax_roberta(name, train=True)


@pytest.mark.torch
@for_each_model
def test_hidden_states_match_torch_roberta(name):
    pytest.importorskip("torch")
    settings = peers.SETTINGS[name]
    ids, mask = peers.make_text_inputs(settings)
    roberta = Roberta(RobertaSettings(**settings))
    params = init_seeded(roberta, ids, mask)
    state = torch_state(traverse_util.flatten_dict(params, sep="."))
    assert {key: value.shape for key, value in state.items()} == peers.torch_shapes(settings)
    compared = mask.copy()
    compared[3] = False  # this text has a gap, which PyTorch treats as padding because it derives positions from ids
    hidden = jax.jit(roberta.apply)({"params": params}, ids, mask)
    np.testing.assert_allclose(hidden[compared], peers.torch_hidden(settings, state)[compared], atol=1e-5)


def test_defaults_match_the_transformers_config():
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig()
    for field in dataclasses.fields(RobertaSettings):
        assert getattr(config, field.name) == field.default, field.name


def test_position_ids_count_unmasked_tokens():
    mask = jnp.array([[True, True, False, True], [True, False, False, False]])
    assert make_position_ids(mask, 1).tolist() == [[2, 3, 1, 4], [2, 1, 1, 1]]
    assert make_position_ids(mask, 3).tolist() == [[4, 5, 3, 6], [4, 3, 3, 3]]


def test_bfloat16_with_float32_parameters_is_close_to_float32():
    settings = RobertaSettings(**peers.SETTINGS["two layers"])
    ids, mask = peers.make_text_inputs(peers.SETTINGS["two layers"])
    bfloat16_module, params = Roberta(settings, dtype=jnp.bfloat16), init_seeded(Roberta(settings), ids, mask)
    initial = jax.eval_shape(bfloat16_module.init, jax.random.key(0), ids, mask)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    hidden = jax.jit(bfloat16_module.apply)({"params": params}, ids, mask)
    assert hidden.dtype == jnp.bfloat16
    expected = jax.jit(Roberta(settings).apply)({"params": params}, ids, mask)
    np.testing.assert_allclose(hidden[mask], expected[mask], atol=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "hidden_size=16 must be a multiple of num_attention_heads=5"),
        ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'; it must be one of gelu, gelu_new"),
    ],
)
def test_invalid_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        RobertaSettings(**{**peers.SETTINGS["two layers"], **changes})
