"""The plain files of a run's workdir: its config, the versions, and its description (`description.py`).

docs/workdir.md lists every file. Paths may be local or on a bucket (`gs://...`).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from caption_jax.config import default_config
from caption_jax.errors import MissingFileError, WorkdirError
from caption_jax.runs.description import ModelSettings, RunDescription
from input_pipeline.files import write_atomically
from input_pipeline.images import Preprocessing
from input_pipeline.tokenizer import Vocabulary

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "tokenizers"),
    *("pillow", "simplejpeg", "kornia-rs"),
)

# A run cannot go on under another value of these: its parameters, its token ids or its data order would not fit.
_FIXED = (
    "seed",
    "model.",
    "data.source",
    "data.tokenizer",
    "data.vocabulary_size",
    "data.lowercase",
    "data.compact_vocabulary",
    "data.max_length",
    "data.image_size",
    "data.fit",
    "data.interpolation",
    "data.batch_size",
    "data.captions_per_image",
    "optimizer.name",
)
_DECIDES_ON_SHARED_SPACE = "objective.contrastive_weight"  # by being 0 or above: the same


def write_description(workdir: epath.Path, description: RunDescription) -> None:
    """Writes config.json, versions.json, model.json, preprocessing.json and tokenizer/."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(workdir, description.config)
    _write_json(workdir / "model.json", dataclasses.asdict(description.model_settings))
    write_atomically(workdir / "preprocessing.json", description.preprocessing.to_json() + "\n")
    description.vocabulary.save(workdir / "tokenizer")


def write_config(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes config.json, and versions.json of what it now runs with."""
    _write_json(workdir / "config.json", config.to_dict())
    _write_json(workdir / "versions.json", versions())


def read_description(workdir: str | epath.Path) -> RunDescription:
    """Reads what `write_description` wrote.

    Raises:
        FileNotFoundError: the folder is not a run's workdir.
    """
    workdir = epath.Path(workdir)
    return RunDescription(
        config=read_config(workdir),
        model_settings=ModelSettings(**_read_json(workdir / "model.json")),
        preprocessing=Preprocessing.from_json(_read_text(workdir / "preprocessing.json")),
        vocabulary=Vocabulary.load(workdir / "tokenizer"),
    )


def read_config(workdir: str | epath.Path) -> ConfigDict:
    """The config a run was last started with, locked; keys that were added since have their defaults."""
    config = default_config()
    with config.unlocked():
        config.update(_tuples(_read_json(epath.Path(workdir) / "config.json")))
    return config


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as "a.b.c" -> (old, new); a key that one side lacks counts as None there."""
    old_flat, new_flat = _flatten(old.to_dict()), _flatten(new.to_dict())
    keys = sorted(old_flat.keys() | new_flat.keys())
    return {k: (old_flat.get(k), new_flat.get(k)) for k in keys if old_flat.get(k) != new_flat.get(k)}


def check_resumable(changes: dict[str, tuple[Any, Any]], workdir: str | epath.Path) -> None:
    """Raises ValueError when a changed key makes the stored state of `workdir` useless."""
    fixed = {k: v for k, v in changes.items() if any(k == f or (f.endswith(".") and k.startswith(f)) for f in _FIXED)}
    fixed |= {k: v for k, v in changes.items() if k == _DECIDES_ON_SHARED_SPACE and not all(v)}
    if fixed:
        lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in fixed.items())
        raise WorkdirError(
            f"{workdir} holds a run that cannot go on with these changes:\n{lines}\n"
            f"Undo them, or train in another workdir with --config.init_from={workdir} to start from its weights."
        )


def _tuples(tree: Any) -> Any:
    """JSON's lists as the tuples they were; the command line can override no list."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: json.loads(json.dumps(tree))}  # tuples and lists compare as equals
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else key))
    return flat


def versions() -> dict[str, str]:
    """Those of Python, the platform and the packages that matter."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def _write_json(path: epath.Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: epath.Path) -> Any:
    return json.loads(_read_text(path))


def _read_text(path: epath.Path) -> str:
    if not path.exists():
        raise MissingFileError(f"{path} is missing: {path.parent} is not the workdir of a training run")
    return path.read_text()
