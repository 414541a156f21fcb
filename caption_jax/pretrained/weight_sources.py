"""Locates weights (a file, a folder, a name on the hub) and the JSON files next to them, and checks their keys."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from caption_jax.errors import WeightsError

KEY = "config.model.encoder.weights"


def locate(weights: str, endings: tuple[str, ...], choices: str) -> Path:
    """The file of weights that `weights` names: a file, a folder or a name on the hub.

    A folder is one that transformers or timm saved: it holds `model.safetensors` or, from older versions,
    `pytorch_model.bin`.

    Args:
        weights: value of the config key.
        endings: of files that can be read; a name with one of them is a file, whether or not it exists.
        choices: what the value could have been, for the error.

    Raises:
        WeightsError: it is empty or none of these, or the hub does not have it.
    """
    if not weights:
        raise WeightsError(f"{KEY} is empty: there is nothing to load")
    path = Path(weights).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or weights.endswith(endings):
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", weights):
        return _in_folder(_from_hub(weights))
    raise WeightsError(f"{KEY} is {weights!r}: {choices}")


def sibling_json(path: Path, name: str) -> dict[str, Any]:
    """The object in the JSON file `name` of the folder that `path` is in; empty where there is no such file.

    Raises:
        WeightsError: the file holds something else.
    """
    file = path.parent / name
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: this is not a JSON object ({error})") from error


def check_keys(path: Path, missing: Collection[str], extra: Collection[str], *, network: str, key: str) -> None:
    """Raises WeightsError that names missing and left-over keys, if there are any.

    Args:
        path: the file.
        missing: keys that the network needs and the file lacks.
        extra: keys of the file that the network has no use for.
        network: whose weights the file should hold, such as "EfficientNet 'b0' under timm's names".
        key: config key that chooses the network.
    """
    if missing or extra:
        parts = [f"{len(missing)} keys missing: {listed_keys(missing)}"] * bool(missing)
        parts += [f"{len(extra)} keys left over: {listed_keys(extra)}"] * bool(extra)
        raise WeightsError(
            f"{path}: not the weights of {network}: {'; '.join(parts)}. Is {key} the one they were made for?"
        )


def listed_keys(keys: Iterable[str]) -> str:
    """The first ten of the keys in alphabetical order, for an error."""
    listed = sorted(keys)
    return ", ".join(map(repr, listed[:10])) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _in_folder(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: the folder holds no model.safetensors; name the file of weights itself")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model.safetensors"]))
    except Exception as error:  # the hub's client raises a dozen kinds, most of them about the connection
        raise WeightsError(
            f"{KEY}: {name!r} could not be fetched from the hub ({type(error).__name__}: {error}); download its "
            "model.safetensors and JSON files into a folder and name that folder"
        ) from error
