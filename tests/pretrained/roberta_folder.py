"""Writes the weights and config of a RoBERTa in the published file formats."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import flax.serialization
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from caption_jax.models.roberta import RobertaSettings

WEIGHT_FORMATS = ("msgpack", "flax safetensors", "torch safetensors", "sharded torch safetensors")


def write_folder(
    folder: Path, form: str, settings: RobertaSettings, params, output_bias: np.ndarray | None = None
) -> Path:
    """Writes config.json and the `params` of a `Roberta`, and returns `folder`.

    PyTorch files also contain the other tensors of a language model. The form "flax safetensors" contains only the
    encoder, without the bias of the language model head.
    """
    (folder / "config.json").write_text(json.dumps({**dataclasses.asdict(settings), "model_type": "roberta"}))
    flat = {name: np.asarray(value) for name, value in traverse_util.flatten_dict(params, sep=".").items()}
    head = {} if output_bias is None else {"lm_head.bias": output_bias}
    if form == "msgpack":
        arrays = {f"roberta.{name}": value for name, value in flat.items()} | head
        tree = traverse_util.unflatten_dict(arrays, sep=".")
        (folder / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    elif form == "flax safetensors":
        save_file({f"roberta.{name}": value for name, value in flat.items()}, folder / "model.safetensors")
    else:
        unused = {
            "roberta.embeddings.position_ids": np.arange(settings.max_position_embeddings)[None],
            "roberta.pooler.dense.weight": np.zeros((settings.hidden_size, settings.hidden_size), np.float32),
        }
        tensors = {f"roberta.{name}": value for name, value in torch_state(flat).items()} | head | unused
        names = sorted(tensors)
        files = {"model.safetensors": names}
        if form == "sharded torch safetensors":
            files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
            index = {"weight_map": {name: file for file, names in files.items() for name in names}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for file, names in files.items():
            save_file({name: tensors[name] for name in names}, folder / file)
    return folder


def torch_state(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the parameters of a `Roberta`, keyed by dotted paths, to PyTorch names and layouts."""
    state = {}
    for name, value in flat.items():
        module, leaf = name.rsplit(".", 1)
        value = np.ascontiguousarray(value.T) if leaf == "kernel" else value
        state[f"{module}.{'bias' if leaf == 'bias' else 'weight'}"] = value
    return state
