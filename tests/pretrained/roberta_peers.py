"""The RoBERTa of the transformers library, with seeded weights. Run as a script to write the golden files.

The script requires PyTorch and transformers 4.57, the last release with Flax models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from seeded_weights import seeded_array, seeded_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# Keys as in config.json. The labels are part of the keys of the golden file.
SETTINGS: dict[str, dict[str, Any]] = {
    "two layers": {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "relu, two types, another pad": {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "hidden_act": "relu",
        "max_position_embeddings": 14,
        "type_vocab_size": 2,
        "pad_token_id": 3,
    },
    "three layers, tanh": {
        "vocab_size": 50,
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 11,
        "type_vocab_size": 1,
    },
}
# Settings of the model in the folder `roberta_bin`.
BIN_SETTINGS = {
    **SETTINGS["two layers"],
    "vocab_size": 12,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 12,
}


def make_text_inputs(settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and mask, [4, 8], for texts of 8, 5 and 1 tokens, and of 6 with a gap."""
    pad = settings.get("pad_token_id", 1)
    mask = np.arange(8) < np.array([8, 5, 1, 7])[:, None]
    mask[3, 2] = False
    ids = np.random.RandomState(8).randint(4, settings["vocab_size"], mask.shape)
    return np.where(mask, ids, pad).astype(np.int32), mask


def make_cotangent(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the cotangent of the hidden states for a gradient, zero at padding."""
    return seeded_array("cotangent", hidden.shape) * mask[..., None]


def flax_module(settings: dict[str, Any]) -> Any:
    """Returns transformers' Flax module."""
    from transformers import RobertaConfig
    from transformers.models.roberta.modeling_flax_roberta import FlaxRobertaModule

    return FlaxRobertaModule(RobertaConfig(**settings), add_pooling_layer=False)


def flax_inputs(settings: dict[str, Any]) -> tuple:
    """Returns the positional arguments of `flax_module`.

    Positions are computed as in `FlaxRobertaModel`, all token types are zero, and there is no head mask.
    """
    from transformers.models.roberta.modeling_flax_roberta import create_position_ids_from_input_ids

    ids, mask = make_text_inputs(settings)
    positions = create_position_ids_from_input_ids(ids, settings.get("pad_token_id", 1))
    return ids, mask.astype(np.int32), np.zeros_like(ids), positions, None


def torch_hidden(settings: dict[str, Any], weights: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the hidden states of transformers' PyTorch module, [4, 8, hidden]."""
    import torch
    from transformers import RobertaConfig, RobertaModel

    module = RobertaModel(RobertaConfig(**settings), add_pooling_layer=False).eval()
    state = {name: torch.tensor(value) for name, value in weights.items()}
    module.load_state_dict(state, strict=False)
    with torch.no_grad():
        return module(*map(torch.tensor, make_text_inputs(settings))).last_hidden_state.numpy()


def torch_shapes(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the PyTorch module's parameters."""
    from transformers import RobertaConfig, RobertaModel

    module = RobertaModel(RobertaConfig(**settings), add_pooling_layer=False)
    return {name: tuple(value.shape) for name, value in module.named_parameters()}


def write_golden_files() -> None:
    """Writes the Flax module's hidden states and subsampled gradients, and a small `pytorch_model.bin`."""
    import jax
    import torch
    from flax import traverse_util

    stored = {}
    for name, settings in SETTINGS.items():
        module, inputs = flax_module(settings), flax_inputs(settings)
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
        params = traverse_util.unflatten_dict(seeded_weights(shapes), sep="/")

        def loss(params, module=module, inputs=inputs):
            hidden = module.apply({"params": params}, *inputs)[0]
            return (hidden * make_cotangent(hidden, inputs[1])).sum(), hidden

        gradient, hidden = jax.grad(loss, has_aux=True)(params)
        flat = traverse_util.flatten_dict(gradient, sep="/")
        stored[f"{name}/hidden"] = np.asarray(hidden)
        stored[f"{name}/gradient"] = np.concatenate([np.ravel(flat[path])[::11] for path in sorted(flat)])
    np.savez_compressed(GOLDEN / "roberta_flax.npz", **stored)

    folder = GOLDEN / "roberta_bin"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", **BIN_SETTINGS}, indent=2) + "\n")
    state = {
        f"roberta.{name}": torch.tensor(seeded_array(name, shape)) for name, shape in torch_shapes(BIN_SETTINGS).items()
    }
    state["lm_head.bias"] = torch.tensor(seeded_array("lm_head.bias", (BIN_SETTINGS["vocab_size"],)))
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)  # as for roberta-base


if __name__ == "__main__":
    write_golden_files()
