"""Exported folders: a model that can be shared, with a model card and without paths of the computer that trained it.

An exported folder is an artifact whose `config.json` also contains the model settings, and which has a `README.md`.
`loading.py` reads it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from caption_jax.parameters.stored_dtypes import find_stored_dtype
from caption_jax.runs.artifact import CARD, EXPORT_FORMAT, write_weights
from caption_jax.runs.description import RunDescription
from caption_jax.runs.weights import Weights
from caption_jax.runs.workdir import MODEL_SETTINGS, VERSION, versions, write_json
from caption_jax.specs import as_mapping
from input_pipeline.files import write_atomically
from input_pipeline.special_tokens import SPECIALS
from input_pipeline.tokenizer import Vocabulary

_ABSOLUTE = re.compile(r"[/~]|[A-Za-z]:[\\/]|\w+://")

_WITH_PATHS = ("init_from", "data", "model", "train")  # sections and keys of a spec that can contain paths


def write_exported_folder(
    folder: epath.Path,
    description: RunDescription,
    weights: Weights,
    card: str,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes an exported folder, with its manifest last.

    Args:
        folder: folder to write to, which is created if needed.
        description: description of the model.
        weights: weights as NumPy arrays, stored in any dtype (`stored_dtypes`).
        card: content of README.md.
        extra_files: contents of further files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", _make_config(description, weights))
    write_atomically(folder / "preprocessing.json", description.preprocessing.to_json() + "\n")
    description.vocabulary.save(folder / "tokenizer")
    for name, content in (extra_files or {}).items():
        write_atomically(folder / name, content)
    write_atomically(folder / CARD, card)
    write_weights(folder, weights, EXPORT_FORMAT)


def _make_config(description: RunDescription, weights: Weights) -> dict[str, Any]:
    return {
        "version": VERSION,
        "step": weights.step,
        "weights": find_stored_dtype(weights.variables),
        MODEL_SETTINGS: dataclasses.asdict(description.model_settings),
        "vocabulary": summarise_vocabulary(description.vocabulary),
        "spec": remove_folders(as_mapping(description.spec)),
        "versions": {name: version for name, version in versions().items() if name != "platform"},
    }


def summarise_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns facts about a vocabulary for readers; `tokenizer/` defines it."""
    return {
        "size": vocabulary.size,
        "tokenizer_size": vocabulary.tokenizer.size,
        "lowercase": vocabulary.tokenizer.lowercase,
        "special_tokens": {token: index for index, token in enumerate(SPECIALS)},
        "fingerprint": vocabulary.fingerprint(),
    }


def remove_folders(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Reduces absolute paths and URLs in a spec to their last component.

    They would tell strangers about the computer, and do not exist on theirs. Loading does not need them.
    """
    return {key: _remove_folders(value) if key in _WITH_PATHS else value for key, value in spec.items()}


def _remove_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _remove_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_remove_folders(item) for item in value]
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return os.path.basename(value.replace("\\", "/").rstrip("/"))
    return value
