"""Loads RoBERTa weights from a folder, a file or the hub, in any published format, without PyTorch or transformers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float32

from caption_jax.errors import MissingFileError, WeightsError
from caption_jax.models.roberta import Roberta, RobertaSettings
from caption_jax.pretrained.checkpoint_contents import UNUSED_KEYS, select_network
from caption_jax.pretrained.weight_files import TORCH_NAMED_ENDINGS, Tensor, open_weights
from caption_jax.pretrained.weight_sources import get_section, read_json_object
from input_pipeline.extras import optional_packages
from input_pipeline.files import local_path

# Keys of the first layer in PyTorch and Flax.
_STEMS = ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.embedding")
_FLAX_FILE = "flax_model.msgpack"
_MAX_MSGPACK_BYTES = 2**32
_MAX_SIZE = 2**31
_DESCRIPTIONS = {int: "a whole number, 0 or more", float: "a number, 0 or more", str: "a name"}
# Weight files in order of preference. An index file lists the files of sharded weights.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    _FLAX_FILE,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# File patterns of each format on the hub. The first format for which a repository has weights is downloaded.
_HUB_FORMATS = (
    ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    (_FLAX_FILE,),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)

# PyTorch's names for our leaves; the second names were used until 2019. Module names are the same in PyTorch.
_TORCH_LEAVES = {
    "embedding": ("weight",),
    "kernel": ("weight",),  # transposed
    "scale": ("weight", "gamma"),
    "bias": ("bias", "beta"),
}

# Tensors of a checkpoint that a text encoder does not use.
_UNUSED_NAMES = re.compile(r"(lm_head|pooler|qa_outputs)\..*|.*\.(position_ids|token_type_ids)")


@dataclass(frozen=True)
class PretrainedText:
    """A pretrained RoBERTa model.

    Attributes:
        sizes: settings of the network.
        params: parameters of the `roberta` submodule of a `TextEncoder`, as float32 NumPy arrays.
        source: path of the weight file.
        output_bias: bias of the language modelling head; None if the file does not contain it.
    """

    sizes: RobertaSettings
    params: dict[str, Any]
    source: str
    output_bias: Float32[np.ndarray, " vocabulary"] | None = None


def load_roberta(name: str) -> PretrainedText:
    """Loads a RoBERTa model from a hub name such as "roberta-base", from a folder, or from a weight file.

    A folder contains config.json and weights: `model.safetensors` (PyTorch or Flax names), `flax_model.msgpack` or
    `pytorch_model.bin`; the first and the last may be sharded. A file is one of these, or a training checkpoint
    (`caption_jax.pretrained.checkpoint_contents`), with config.json in the same folder. Other names are looked up on
    the Hugging Face Hub, or in its local cache when offline.

    Raises:
        MissingFileError: the folder or hub model does not exist or has no weights.
        WeightsError: config.json is not that of a RoBERTa model, or the weights do not match it.
    """
    folder = _locate_folder(name)
    sizes = _read_settings(folder)
    source = Path(name) if Path(name).is_file() else _locate_weight_file(folder)
    network = select_network(source, _open(source), _STEMS)
    if network is None:
        raise WeightsError(f"{source} does not contain a RoBERTa model: no key ends in {' or '.join(_STEMS)}")
    tensors = network.tensors
    bias = network.find("lm_head.bias", "roberta.")
    if bias is not None and tuple(bias.shape) != (sizes.vocab_size,):
        raise WeightsError(
            f"{source}: lm_head.bias has shape {tuple(bias.shape)}; config.json implies {(sizes.vocab_size,)}"
        )
    output_bias = None if bias is None else np.asarray(bias.read(), np.float32)
    return PretrainedText(sizes, _convert(tensors, sizes, source), str(source), output_bias)


def load_roberta_settings(name: str) -> dict[str, Any]:
    """Returns the fields of `RobertaSettings` for the model that `load_roberta` loads, without reading the weights.

    Raises:
        MissingFileError: the folder or hub model does not exist or has no config.json.
        WeightsError: config.json is not that of a RoBERTa model.
    """
    return dataclasses.asdict(_read_settings(_locate_folder(name)))


def _locate_folder(name: str) -> Path:
    if local_path(name, "RoBERTa weights").is_file():
        return Path(name).parent
    if name.endswith((*TORCH_NAMED_ENDINGS, ".msgpack")):
        raise MissingFileError(f"no such file: {name}")
    return Path(name) if Path(name).is_dir() else _download(name)


def _read_settings(folder: Path) -> RobertaSettings:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise MissingFileError(
            f"{folder} has no config.json: copy the config.json of the RoBERTa model that the weights belong to there"
        )
    settings = read_json_object(config_file)
    if settings.get("model_type") != "roberta":
        raise WeightsError(f"{config_file} has model_type={settings.get('model_type')!r}; expected 'roberta'")
    for key in ("is_decoder", "add_cross_attention"):
        if settings.get(key):
            raise WeightsError(f"{config_file} has {key}=true, which a text encoder does not support")
    fields = {field.name: type(field.default) for field in dataclasses.fields(RobertaSettings)}
    values = {key: value for key, value in settings.items() if key in fields}
    for key, value in values.items():
        if not _is_setting(value, fields[key]):
            raise WeightsError(f"{config_file} has {key}={value!r:.100}; expected {_DESCRIPTIONS[fields[key]]}")
    try:
        return RobertaSettings(**values)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{config_file}: {error}") from error


def _is_setting(value: Any, kind: type) -> bool:
    """Returns whether a value of config.json is of the type of its setting, and not negative or absurdly large."""
    if kind is str:
        return isinstance(value, str)
    return type(value) in (int, kind) and 0 <= value < _MAX_SIZE


def _download(name: str) -> Path:
    with optional_packages(f"{name!r}, which is not a local folder,"):
        from huggingface_hub import snapshot_download

    try:
        for patterns in _HUB_FORMATS:
            folder = Path(snapshot_download(name, allow_patterns=["config.json", *patterns]))
            if any((folder / file).is_file() for file in _WEIGHT_FILES):
                break
    except Exception as error:  # the hub client raises many types
        raise MissingFileError(
            f"{name!r} is not a local folder and could not be downloaded from the Hugging Face Hub ({error}); use a "
            "folder with config.json and model.safetensors, flax_model.msgpack or pytorch_model.bin"
        ) from error
    return folder


def _locate_weight_file(folder: Path) -> Path:
    for name in _WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(f"no supported weights in {folder}; expected one of {', '.join(_WEIGHT_FILES)}")


@dataclass(frozen=True)
class _Array:
    """An array in memory with the interface of `Tensor`."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def read(self) -> np.ndarray:
        return self.array


def _open(source: Path) -> Mapping[str, Tensor]:
    """Returns the tensors by name, with dots between modules."""
    if source.suffix == ".msgpack":
        return _open_msgpack(source)
    if source.suffix == ".json":
        files = sorted(set(map(str, get_section(read_json_object(source), "weight_map", source).values())))
        if any(Path(file).name != file for file in files):
            raise WeightsError(f"{source} names files outside of its folder: download it again")
        return {name: tensor for file in files for name, tensor in open_weights(source.parent / file).tensors.items()}
    return open_weights(source).tensors


def _open_msgpack(source: Path) -> dict[str, Tensor]:
    if source.stat().st_size > _MAX_MSGPACK_BYTES:
        raise WeightsError(f"{source} has more than {_MAX_MSGPACK_BYTES / 1e9:.0f} GB: use model.safetensors")
    try:
        flat = traverse_util.flatten_dict(flax.serialization.msgpack_restore(source.read_bytes()), sep=".")
    except Exception as error:  # damaged files can raise any exception
        reason = f"{type(error).__name__}: {error}"[:200]
        raise WeightsError(f"{source} is not a complete file of Flax weights ({reason}); download it again") from error
    if others := [name for name, value in flat.items() if not isinstance(value, np.ndarray)]:
        raise WeightsError(f"{source}: {others[0]!r} is not an array; download the file again")
    return {name: _Array(value) for name, value in flat.items()}


def _convert(tensors: Mapping[str, Tensor], sizes: RobertaSettings, source: Path) -> dict[str, Any]:
    """Converts the tensors to a parameter tree of `Roberta`, and checks names and shapes."""
    ids = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Roberta(sizes).init, jax.random.key(0), ids, ids == 0)["params"]
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    has_flax_names = any(name.endswith(".kernel") for name in tensors)
    names = {path: _get_tensor_name(path, tensors, has_flax_names) for path in shapes}
    missing = sorted(path for path, name in names.items() if name not in tensors)
    unexpected = sorted(name for name in tensors.keys() - names.values() if not _is_unused(name))
    if missing or unexpected:
        raise WeightsError(
            f"{source} does not match its config.json: {len(missing)} arrays missing {missing[:5]}, "
            f"{len(unexpected)} unexpected {unexpected[:5]}"
        )
    flat = {}
    for path, shape in shapes.items():
        tensor, is_transposed = tensors[names[path]], path.endswith("/kernel") and not has_flax_names
        actual = tuple(tensor.shape)[:: -1 if is_transposed else 1]
        if actual != shape:
            raise WeightsError(f"{source}: {path} has shape {actual}; config.json implies {shape}")
        array = tensor.read()
        flat[path] = np.ascontiguousarray(array.T if is_transposed else array, np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def _is_unused(name: str) -> bool:
    """Returns whether a text encoder does not use a tensor."""
    return bool(_UNUSED_NAMES.fullmatch(name) or UNUSED_KEYS.fullmatch(name))


def _get_tensor_name(path: str, tensors: Mapping[str, Tensor], has_flax_names: bool) -> str:
    """Returns the file's name for our parameter at `path`."""
    module, leaf = path.replace("/", ".").rsplit(".", 1)
    leaves = (leaf,) if has_flax_names else _TORCH_LEAVES[leaf]
    names = [f"{module}.{name}" for name in leaves]
    return next((name for name in names if name in tensors), names[0])
