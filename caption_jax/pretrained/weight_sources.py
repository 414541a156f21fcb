"""Locates weights (a file, folder or hub name), reads the JSON files next to them, and checks their keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from caption_jax.errors import WeightsError
from input_pipeline.extras import optional_packages
from input_pipeline.files import local_path

_MAX_JSON_BYTES = 2**24

KEY = "config.model.encoder.weights"


def locate_weights(weights: str, endings: tuple[str, ...], choices: str) -> Path:
    """Returns the path of the weight file for a file, a folder or a hub name.

    A folder must contain `model.safetensors` or `pytorch_model.bin`, as saved by transformers or timm.

    Args:
        weights: value of the config key.
        endings: supported file name endings; a value with such an ending is a file even if it does not exist.
        choices: description of the valid values, for the error message.

    Raises:
        WeightsError: `weights` is empty or invalid, or the download fails.
    """
    if not weights:
        raise WeightsError(f"{KEY} is empty; set it to the weights to load")
    path = local_path(weights, KEY).expanduser()
    if path.is_dir():
        return _locate_in_folder(path)
    if path.exists() or weights.endswith(endings):
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        return _locate_in_folder(_download(weights))
    raise WeightsError(f"{KEY} is {weights!r}: {choices}")


def read_sibling_json(path: Path, name: str) -> dict[str, Any]:
    """Returns the JSON object in the file `name` next to `path`, or {} if the file does not exist.

    Raises:
        WeightsError: the file does not contain a JSON object.
    """
    file = path.parent / name
    if not file.is_file():
        return {}
    return read_json_object(file)


def read_json_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        WeightsError: the file does not contain a JSON object, or is larger than any description of a model.
    """
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise WeightsError(f"{file} has more than {_MAX_JSON_BYTES:,} bytes: download it again")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is not a JSON object ({error}): download it again") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} is not a JSON object, but a {type(content).__name__}: download it again")
    return content


def get_section(config: Mapping[str, Any], key: str, source: Path) -> Mapping[str, Any]:
    """Returns the object at `key` of a config, or the config itself if it has no such key.

    Raises:
        WeightsError: the value is not an object.
    """
    section = config.get(key, config)
    if not isinstance(section, Mapping):
        raise WeightsError(f"the config of {source} has {key}={section!r:.100}; expected an object")
    return section


def get_number(config: Mapping[str, Any], key: str, default: float, source: Path) -> float:
    """Returns a positive number of a config.

    Raises:
        WeightsError: the value is not one.
    """
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WeightsError(f"the config of {source} has {key}={value!r:.100}; expected a positive number")
    return float(value)


def get_triple(config: Mapping[str, Any], key: str, default: Sequence[float], source: Path) -> tuple[float, ...]:
    """Returns the three numbers of a config, one per channel.

    Raises:
        WeightsError: the value is not a list of three finite numbers.
    """
    value = config.get(key, default)
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    if not is_triple or not all(type(number) in (int, float) and abs(number) < math.inf for number in value):
        raise WeightsError(f"the config of {source} has {key}={value!r:.100}; expected three finite numbers")
    return tuple(map(float, value))


def check_keys(
    path: Path, missing: Collection[str], unexpected: Collection[str], *, network: str, config_key: str
) -> None:
    """Raises WeightsError if a weight file has missing or unexpected keys.

    Args:
        path: the file.
        missing: keys of the network that are not in the file.
        unexpected: keys of the file that the network does not use.
        network: description of the expected network, such as "EfficientNet 'b0' with timm names".
        config_key: config key that selects the network.
    """
    if missing or unexpected:
        parts = [f"{len(missing)} missing keys: {format_keys(missing)}"] * bool(missing)
        parts += [f"{len(unexpected)} unexpected keys: {format_keys(unexpected)}"] * bool(unexpected)
        raise WeightsError(
            f"{path} does not contain the weights of {network}: {'; '.join(parts)}. "
            f"Does {config_key} match the weights?"
        )


def format_keys(keys: Iterable[str]) -> str:
    """Formats the first ten keys, in alphabetical order, for an error message."""
    keys = sorted(keys)
    return ", ".join(map(repr, keys[:10])) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")


def _locate_in_folder(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"no model.safetensors in {folder}; specify the weight file itself")


def _download(name: str) -> Path:
    with optional_packages(f"{KEY}={name!r}"):
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model.safetensors"]))
    except Exception as error:  # the hub client raises many types, mostly connection errors
        raise WeightsError(
            f"{KEY}: {name!r} could not be downloaded from the hub ({type(error).__name__}: {error}); download its "
            "model.safetensors and JSON files to a folder and specify that folder"
        ) from error
