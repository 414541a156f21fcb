"""RoBERTa weights from a folder or the hub, in any of the forms they are published in, without importing torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float32
from safetensors import safe_open
from transformers import RobertaConfig

from caption_jax.errors import MissingFileError, WeightsError
from caption_jax.models.text_encoder import TextEncoder

_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack")

# Of a config.json, what a text encoder's shape and its computation depend on.
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "initializer_range",
    "pad_token_id",
)

# Parts of checkpoints that a text encoder has no use for.
_OTHER_PARTS = ("lm_head", "pooler", "classifier", "qa_outputs")


@dataclass(frozen=True)
class PretrainedText:
    """A RoBERTa as published.

    Attributes:
        config: its sizes.
        params: numpy tree for the `roberta` submodule of a `TextEncoder`, float32.
        source: file the weights came from.
        output_bias: of its language model's scores, a number a token; None where the file has none.
    """

    config: RobertaConfig
    params: dict[str, Any]
    source: str
    output_bias: Float32[np.ndarray, " vocabulary"] | None = None


def load_roberta(name: str) -> PretrainedText:
    """Reads a RoBERTa, such as "roberta-base" or a folder that holds config.json and weights.

    Weights may be `model.safetensors` (PyTorch's names or Flax's, one file or sharded with an index) or
    `flax_model.msgpack`. A name that is no local folder is looked up on the Hugging Face hub, or in its local cache
    when offline.

    Raises:
        MissingFileError: no such folder or hub name, or no weights in it.
        WeightsError: the config is no RoBERTa, or the weights do not fit it; missing ones are named.
    """
    folder = _folder(name)
    config = _read_config(folder)
    weights, source = _read_weights(folder)
    bias = weights.get("lm_head/bias")
    output_bias = None if bias is None else np.asarray(bias, np.float32)
    return PretrainedText(config, _fit(weights, config, source), str(source), output_bias)


def load_roberta_sizes(name: str) -> dict[str, Any]:
    """What `build_model` must know of the RoBERTa that `load_roberta` reads. Raises as it does, but for the weights."""
    config = _read_config(_folder(name))
    return {size: getattr(config, size) for size in _SIZES}


def _folder(name: str) -> Path:
    return Path(name) if Path(name).is_dir() else _from_hub(name)


def _read_config(folder: Path) -> RobertaConfig:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise MissingFileError(f"{folder} has no config.json: a RoBERTa folder holds config.json and its weights")
    settings = json.loads(config_file.read_text())
    if settings.get("model_type") != "roberta":
        raise WeightsError(f"{config_file} describes a model of type {settings.get('model_type')!r}, not a roberta")
    return RobertaConfig.from_dict(settings)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_FILES, "model-*.safetensors"]))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise MissingFileError(
            f"{name!r} is neither a local folder nor a model that the Hugging Face hub gives here ({error}): "
            "point to a folder with config.json and model.safetensors or flax_model.msgpack"
        ) from error


def _read_weights(folder: Path) -> tuple[dict[str, np.ndarray], Path]:
    """Arrays by Flax path ("embeddings/word_embeddings/embedding", ...), and the file they came from."""
    single, index, flax_file = (folder / file for file in _FILES[1:])
    if single.is_file():
        return _read_safetensors([single]), single
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return _read_safetensors([folder / shard for shard in shards]), index
    if flax_file.is_file():
        tree = flax.serialization.msgpack_restore(flax_file.read_bytes())
        flat = traverse_util.flatten_dict(tree, sep="/")
        return {path.removeprefix("roberta/"): np.asarray(value) for path, value in flat.items()}, flax_file
    raise MissingFileError(f"{folder} holds no weights that can be read here: one of {', '.join(_FILES[1:])} is needed")


def _read_safetensors(files: list[Path]) -> dict[str, np.ndarray]:
    arrays = dict(item for file in files for item in _tensors(file))
    arrays = {name.removeprefix("roberta."): value for name, value in arrays.items()}
    if any(name.endswith(".kernel") for name in arrays):
        return {name.replace(".", "/"): value for name, value in arrays.items()}
    return dict(_to_flax(name, value) for name, value in arrays.items())


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with safe_open(file, framework="flax") as tensors:  # "flax" reads bfloat16 as well
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            yield name, np.asarray(tensors.get_tensor(name))


def _to_flax(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """A PyTorch tensor's Flax path and layout."""
    *modules, leaf = name.split(".")
    if leaf in ("weight", "gamma"):
        if modules[-1].endswith("_embeddings"):
            leaf = "embedding"
        elif modules[-1] == "LayerNorm":
            leaf = "scale"
        else:
            leaf, value = "kernel", value.T
    elif leaf == "beta":
        leaf = "bias"
    return "/".join([*modules, leaf]), value


def _fit(weights: dict[str, np.ndarray], config: RobertaConfig, source: Path) -> dict[str, Any]:
    """The tree that a `TextEncoder` of `config` wants."""
    encoder = TextEncoder(config, width=1)
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids, ids)["params"]["roberta"]
    wanted = {path: shape.shape for path, shape in traverse_util.flatten_dict(shapes, sep="/").items()}
    missing = sorted(wanted.keys() - weights.keys())
    unknown = sorted(
        path
        for path in weights.keys() - wanted.keys()
        if path.split("/")[0] not in _OTHER_PARTS and not path.endswith("position_ids")
    )
    if missing or unknown:
        raise WeightsError(
            f"{source} does not fit its config.json: {len(missing)} arrays missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}"
        )
    for path, shape in wanted.items():
        if weights[path].shape != shape:
            raise WeightsError(f"{source}: {path} has shape {weights[path].shape}, but config.json makes it {shape}")
    taken = {path: np.asarray(weights[path], np.float32) for path in wanted}
    return traverse_util.unflatten_dict(taken, sep="/")
