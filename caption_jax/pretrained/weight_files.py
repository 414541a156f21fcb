"""Opens weight files in several formats, as named tensors that are read lazily."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from caption_jax.errors import WeightsError
from caption_jax.models.backbones.efficientnet_variants import Variant
from caption_jax.pretrained.archives import ARCHIVE_ERRORS, open_archive
from caption_jax.pretrained.checkpoint_contents import find_state_dict, read_timm_config
from caption_jax.pretrained.naming import map_keras_modules
from caption_jax.pretrained.torch_file import read_torch_file
from input_pipeline.extras import optional_packages

log = logging.getLogger(__name__)

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
KERAS_ENDINGS = (".h5", ".keras")
TORCH_NAMED_ENDINGS = (*TORCH_ENDINGS, ".safetensors")
ENDINGS = (*TORCH_NAMED_ENDINGS, *KERAS_ENDINGS)

_MAX_HEADER_BYTES = 2**24  # of a safetensors file; a tensor needs about 100
_MAX_HDF5_EXPANSION, _FREE_HDF5_BYTES = 100, 2**20  # weights hardly get smaller by compression
_HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, UnicodeDecodeError)

# Variables by layer class, in the order of their indices in Keras 3 files.
_KERAS_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
    "normalization": ("mean", "variance", "count"),
}


class Tensor(Protocol):
    """A tensor in a file."""

    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Reads the values."""


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    _read: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        return self._read()


@dataclass(frozen=True)
class WeightFile:
    """An open weight file.

    Attributes:
        tensors: tensors by name.
        entry: entry of a training checkpoint that contains the tensors, such as "state_dict_ema"; "" if there is none.
        timm_config: settings in a checkpoint of timm's training script, in the form of timm's config.json; or {}.
    """

    tensors: dict[str, Tensor]
    entry: str = ""
    timm_config: dict[str, Any] = field(default_factory=dict)


def open_weights(path: Path, variant: Variant | None = None) -> WeightFile:
    """Opens a weight file. Reads names and shapes; `Tensor.read` reads the values.

    Args:
        path: a PyTorch, safetensors or Keras file.
        variant: EfficientNet variant. Required for Keras files, because Keras 3 identifies layers by class and index,
            which are converted to layer names ('stem_conv/kernel').

    Raises:
        WeightsError: the file is missing, damaged or of an unsupported type.
    """
    if not path.is_file():
        raise WeightsError(f"no such file: {path}")
    if path.name.endswith(TORCH_ENDINGS):
        return _open_torch(path)
    if path.name.endswith(".safetensors"):
        return WeightFile(_open_safetensors(path))
    if path.name.endswith(KERAS_ENDINGS) and variant is not None:
        return WeightFile(_open_keras(path, variant))
    endings = ENDINGS if variant is not None else TORCH_NAMED_ENDINGS
    raise WeightsError(f"unsupported weight file {path}; expected a file ending in {', '.join(endings)}")


def _open_torch(path: Path) -> WeightFile:
    content = read_torch_file(path)
    entry, tensors = find_state_dict(path, content)
    if entry:
        log.info("%s: reading the entry %r", path, entry)
    return WeightFile(tensors, entry, read_timm_config(content))


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    def read(key: str) -> np.ndarray:
        with safe_open(path, "numpy") as file:
            return file.get_tensor(key)

    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise WeightsError(
            f"{path} is not a safetensors file: it declares a header of {header_bytes:,} bytes, more than "
            f"{_MAX_HEADER_BYTES:,}; download it again"
        )
    try:
        with safe_open(path, "numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OverflowError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file ({error}); download it again") from error
    return {key: _Tensor(shape, lambda key=key: read(key)) for key, shape in shapes.items()}


def _open_keras(path: Path, variant: Variant) -> dict[str, Tensor]:
    with optional_packages("reading Keras weights"):
        import h5py

    datasets: dict[str, tuple[int, ...]] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            _check_dataset(path, name, item)
            datasets[name] = item.shape

    def read(name: str) -> np.ndarray:
        try:
            with h5py.File(source, "r") as file:
                return file[name][()]
        except _HDF5_ERRORS as error:
            raise WeightsError(f"{path}: {name!r} cannot be read ({error}); download the file again") from error

    try:
        source: Any = path
        if zipfile.is_zipfile(path):  # .keras: a zip archive with the HDF5 file inside
            with open_archive(path) as archive:
                source = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(source, "r") as file:
            file.visititems(add)
    except WeightsError:
        raise
    except (*_HDF5_ERRORS, *ARCHIVE_ERRORS) as error:
        raise WeightsError(f"{path} is not a complete Keras weight file ({error}); download it again") from error

    keys = _rename_keras_3(datasets, variant, path) if _is_keras_3(datasets) else _rename_keras_2(datasets)
    return {key: _Tensor(datasets[name], lambda name=name: read(name)) for name, key in keys.items()}


def _check_dataset(path: Path, name: str, dataset: Any) -> None:
    """Checks the declared size of an HDF5 dataset, and that it is numeric and in the file itself.

    Raises:
        WeightsError: the dataset cannot be part of the weights.
    """
    if dataset.dtype.kind not in "fiu":
        raise WeightsError(f"{path}: {name!r} is not an array of numbers; save only the weights")
    if dataset.external or dataset.is_virtual:
        raise WeightsError(f"{path}: {name!r} refers to another file, which is not read")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _MAX_HDF5_EXPANSION * stored + _FREE_HDF5_BYTES:
        raise WeightsError(
            f"{path}: {name!r} declares {dataset.nbytes / 1e6:,.0f} MB, of which the file has {stored / 1e6:,.1f} MB; "
            "download it again"
        )


def _is_keras_3(datasets: dict[str, tuple[int, ...]]) -> bool:
    return any("/vars/" in name for name in datasets)


def _rename_keras_2(datasets: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Converts '[model_weights/]layer/.../depthwise_kernel:0' to 'layer/kernel'."""
    renamed = {}
    for name in datasets:
        parts = name.removeprefix("model_weights/").split("/")
        if parts[0] in ("optimizer_weights", "top_level_model_weights"):
            continue
        leaf = parts[-1].split(":")[0]
        renamed[name] = f"{parts[0]}/{'kernel' if leaf == 'depthwise_kernel' else leaf}"
    return renamed


def _rename_keras_3(datasets: dict[str, tuple[int, ...]], variant: Variant, path: Path) -> dict[str, str]:
    """Converts 'layers/depthwise_conv2d_4/vars/0' to 'layer/kernel' of the fifth depthwise layer that Keras builds."""
    layers: dict[str, list[str]] = {kind: [] for kind in _KERAS_VARIABLES}
    for layer in map_keras_modules(variant).values():
        kind = "batch_normalization" if layer.endswith("bn") else "conv2d"
        layers["depthwise_conv2d" if layer.endswith("dwconv") else kind].append(layer)
    layers["dense"], layers["normalization"] = ["predictions"], ["normalization"]

    renamed = {}
    for name in datasets:
        parts = name.split("/")
        if parts[0] == "optimizer":
            continue
        if len(parts) != 4 or parts[2] != "vars":
            raise WeightsError(f"{path}: {name!r} is not a layer of a Keras EfficientNet; save only the encoder")
        kind, _, number = parts[1].rpartition("_")
        if not (number.isascii() and number.isdigit() and len(number) < 6):
            kind, number = parts[1], "0"
        if kind not in layers or int(number) >= len(layers[kind]):
            raise WeightsError(f"{path}: the variant has no layer {name!r}; do the weights belong to another variant?")
        renamed[name] = f"{layers[kind][int(number)]}/{_variable_name(path, name, kind, parts[3])}"
    return renamed


def _variable_name(path: Path, dataset: str, kind: str, index: str) -> str:
    """Returns the name of a variable of a layer from its index."""
    variables = _KERAS_VARIABLES[kind]
    if not (index.isascii() and index.isdigit()) or int(index) >= len(variables):
        raise WeightsError(f"{path}: {dataset!r} is not a variable of a {kind} layer; download the file again")
    return variables[int(index)]
