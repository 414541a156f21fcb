"""Transformer layers over the memory of an image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_captioner import VOCABULARY_SIZE

from caption_jax.models.build import build_model
from caption_jax.models.memory_layers import MemoryEncoder, MemoryLayer
from caption_jax.specs import ModelSpec
from caption_jax.specs.model_spec import DecoderSpec

BATCH, CELLS, WIDTH, HEADS, HIDDEN = 2, 5, 8, 2, 12
MEMORY = np.random.default_rng(0).normal(size=(BATCH, CELLS, WIDTH)).astype(np.float32)


def init(module):
    """Returns variables whose values are all random, also those of biases and norms."""
    variables = module.init(jax.random.key(0), MEMORY, train=False)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), variables)


def copy_to_torch(params):
    """Returns PyTorch's layer with the same weights."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, dropout=0.0, activation=torch.nn.functional.gelu, norm_first=True, batch_first=True
    )
    layer.norm1.eps = layer.norm2.eps = 1e-6
    attention, network = params["attention"], params["feed_forward"]
    kernels = attention["query"]["kernel"], attention["key_value"]["kernel"]
    biases = attention["query"]["bias"], attention["key_value"]["bias"]
    state = {
        "self_attn.in_proj_weight": np.concatenate(kernels, axis=1).T,
        "self_attn.in_proj_bias": np.concatenate(biases),
        "self_attn.out_proj.weight": attention["out"]["kernel"].T,
        "self_attn.out_proj.bias": attention["out"]["bias"],
        "linear1.weight": network["expand"]["kernel"].T,
        "linear1.bias": network["expand"]["bias"],
        "linear2.weight": network["contract"]["kernel"].T,
        "linear2.bias": network["contract"]["bias"],
        "norm1.weight": params["attention_norm"]["scale"],
        "norm1.bias": params["attention_norm"]["bias"],
        "norm2.weight": params["feed_forward_norm"]["scale"],
        "norm2.bias": params["feed_forward_norm"]["bias"],
    }
    layer.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return layer.eval()


def test_a_layer_equals_that_of_pytorch():
    module = MemoryLayer(WIDTH, HEADS, HIDDEN, activation="gelu")
    variables = init(module)
    actual = module.apply(variables, MEMORY, train=False)
    layer = copy_to_torch(variables["params"])
    expected = layer(next(layer.parameters()).new_tensor(MEMORY)).detach().numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_each_cell_depends_on_all_cells_of_its_image_alone():
    module = MemoryEncoder(2, WIDTH, HEADS, HIDDEN)
    variables = init(module)
    changed = MEMORY.copy()
    changed[0, 3, 0] += 1.0
    outputs = [module.apply(variables, memory, train=False) for memory in (MEMORY, changed)]
    assert (np.abs(outputs[0] - outputs[1]).max(-1) > 1e-5).tolist() == [[True] * CELLS, [False] * CELLS]


def test_dropout_is_active_in_training_only():
    module = MemoryEncoder(1, WIDTH, HEADS, HIDDEN, dropout=0.5)
    variables = init(module)
    plain = module.clone(dropout=0.0).apply(variables, MEMORY, train=True)
    np.testing.assert_array_equal(module.apply(variables, MEMORY, train=False), plain)
    dropped = module.apply(variables, MEMORY, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - plain).max() > 0.1


def test_a_model_has_the_layers_of_its_config():
    decoder = DecoderSpec(layers=1, width=WIDTH, heads=HEADS, feed_forward=HIDDEN)
    shapes = {}
    for layers in (0, 2):
        model = build_model(ModelSpec(memory_layers=layers, decoder=decoder), VOCABULARY_SIZE, max_length=6)
        arguments = jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 1, 5), jnp.int32)
        shapes[layers] = jax.eval_shape(model.init, *arguments)["params"]["image_encoder"]
    assert "memory_encoder" not in shapes[0]
    assert set(shapes[2]["memory_encoder"]) == {"layer_0", "layer_1", "final_norm"}
