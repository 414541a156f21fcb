"""Config, package versions and run description in a workdir.

docs/workdir.md lists all files. Paths may be local or on a bucket (`gs://...`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.metadata
import json
import platform
import warnings
from typing import Any

from etils import epath

from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.runs.description import RunDescription
from caption_jax.runs.description_checks import (
    check_backbone,
    check_vocabulary_size,
    parse_model_settings,
    parse_preprocessing,
)
from caption_jax.specs import RunSpec, as_mapping, differences
from input_pipeline.files import storage_path, write_atomically
from input_pipeline.tokenizer import Vocabulary

VERSION = 4  # format of config.json
MODEL_SETTINGS = "model_settings"  # key of config.json in exported folders

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers"),
    *("pillow", "simplejpeg", "kornia-rs"),
)

# A run cannot be resumed if keys that match these patterns change, because its parameters, token ids or data order
# would not match.
_FIXED = (
    "seed",
    "model.*",
    "data.source",
    "data.tokenizer",
    "data.vocabulary_size",
    "data.lowercase",
    "data.compact_vocabulary",
    "data.max_length",
    "data.image_size",
    "data.resize",
    "data.interpolation",
    "data.batch_size",
    "data.captions_per_image",
    "data.shuffle_window",
    *(f"data.mixture.*.{key}" for key in ("weight", "source", "shuffle_window")),
    "optimizer.name",
)
_CONTRASTIVE_WEIGHT = "objective.contrastive_weight"  # may change, but not between zero and positive


def write_description(workdir: epath.Path, description: RunDescription, configured: RunSpec | None = None) -> None:
    """Writes config.json, versions.json, model.json, preprocessing.json and tokenizer/; see `write_spec`."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_spec(workdir, description.spec, configured)
    write_json(workdir / "model.json", dataclasses.asdict(description.model_settings))
    write_atomically(workdir / "preprocessing.json", description.preprocessing.to_json() + "\n")
    description.vocabulary.save(workdir / "tokenizer")


def write_spec(workdir: epath.Path, spec: RunSpec, configured: RunSpec | None = None) -> None:
    """Writes config.json and versions.json.

    Args:
        workdir: workdir of the run.
        spec: the spec of the run.
        configured: the spec before its values were fitted to the data (`resolve`), if there were such values.
    """
    content: dict[str, Any] = {"version": VERSION, "spec": as_mapping(configured or spec)}
    if configured is not None:
        content["resolved"] = {key: new for key, (_, new) in differences(configured, spec).items()}
    write_json(workdir / "config.json", content)
    write_json(workdir / "versions.json", versions())


def read_description(workdir: str | epath.Path) -> RunDescription:
    """Reads the files that `write_description` wrote.

    Raises:
        MissingFileError: the folder is not the workdir of a run.
        WorkdirError: a newer release wrote it, or a file is damaged.
        DataError: a file of the tokenizer is damaged.
    """
    workdir = storage_path(workdir)
    preprocessing_file = workdir / "preprocessing.json"
    spec = read_spec(workdir)
    model_file, content = _read_model_settings(workdir)
    settings = parse_model_settings(content, model_file)
    preprocessing = parse_preprocessing(_read_json(preprocessing_file), preprocessing_file)
    vocabulary = Vocabulary.load(workdir / "tokenizer")
    check_vocabulary_size(settings, vocabulary.size, model_file)
    description = RunDescription(spec, settings, preprocessing, vocabulary)
    check_backbone(description, model_file)
    return description


def _read_model_settings(workdir: epath.Path) -> tuple[epath.Path, Any]:
    """Returns the file that contains the model settings, and their content.

    Exported folders have them in config.json.
    """
    config = _read_json(workdir / "config.json")
    if MODEL_SETTINGS in config:
        return workdir / "config.json", config[MODEL_SETTINGS]
    return workdir / "model.json", _read_json(workdir / "model.json")


def read_spec(workdir: str | epath.Path) -> RunSpec:
    """Reads the spec with which a run was last started, with values fitted to its data; see `read_specs`."""
    return read_specs(workdir)[1]


def read_specs(workdir: str | epath.Path) -> tuple[RunSpec, RunSpec]:
    """Reads the spec with which a run was last started, as configured and as resolved (`resolve`).

    Keys that a newer release added have their defaults.

    The modules of objectives and evaluators are not imported, because captioning does not use them
    (`DeferredExtension`).

    Raises:
        MissingFileError: the folder is not the workdir of a run.
        WorkdirError: a newer release wrote the file, or a value is no longer valid.
    """
    path = storage_path(workdir) / "config.json"
    content = _read_json(path)
    version = content.get("version", 1) if isinstance(content, dict) and content else None
    if type(version) is not int:
        raise WorkdirError(f"{path} is damaged (it has no version): restore it from a copy")
    if "version" not in content and not {"model", "data", "decode"} & content.keys():
        raise WorkdirError(
            f"{path} is not the config of a caption-jax run: pass the workdir of a run, or a folder that caption-jax "
            "export --to=folder wrote"
        )
    if version > VERSION:
        raise WorkdirError(
            f"{path} has version {version}, written by a newer release; this release reads up to version {VERSION}"
        )
    try:
        values = content if version == 1 else content["spec"]  # version 1 contains only the spec
        with warnings.catch_warnings():
            if version < 3:  # keys may have their former names
                warnings.simplefilter("ignore", FutureWarning)
            configured = RunSpec.from_config(values, loading="defer")
        resolved = _apply_resolved(configured, content.get("resolved", {}) if version > 1 else {})
    except ConfigError as error:
        raise WorkdirError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise WorkdirError(f"{path} is damaged ({reason[:200]}): restore it from a copy") from error
    return configured, resolved


def _apply_resolved(configured: RunSpec, values: dict[str, Any]) -> RunSpec:
    """Returns the spec with the values that were fitted to the data, by key, such as "train.steps"."""
    if not values:
        return configured
    mapping = as_mapping(configured)
    for key, value in values.items():
        section, name = key.split(".")
        mapping[section][name] = value
    return RunSpec.from_config(mapping, loading="defer")


def check_resumable(changes: dict[str, tuple[Any, Any]], workdir: str | epath.Path) -> None:
    """Raises WorkdirError if config changes prevent resuming the run in a workdir.

    Args:
        changes: old and new values of changed keys.
        workdir: workdir of the run, for the message.
    """
    invalid = {key: values for key, values in changes.items() if _is_fixed(key)}
    invalid |= {key: values for key, values in changes.items() if key == _CONTRASTIVE_WEIGHT and not all(values)}
    if invalid:
        lines = "\n".join(f"  {key}: {old!r} -> {new!r}" for key, (old, new) in invalid.items())
        raise WorkdirError(
            f"{workdir} holds a run that cannot be resumed with these changes:\n{lines}\n"
            f"Revert them, or train in another workdir with --config.init_from={workdir} to start from its weights."
        )


def _is_fixed(key: str) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in _FIXED)


def versions() -> dict[str, str]:
    """Returns the versions of Python, the platform and the main dependencies."""
    result = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            result[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            result[package] = "absent"
    return result


def write_json(path: epath.Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: epath.Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise WorkdirError(f"{path} is damaged ({str(error)[:200]}): restore it from a copy") from error


def _read_text(path: epath.Path) -> str:
    if not path.exists():
        raise MissingFileError(
            f"{path} is missing: {path.parent} is not the workdir of a training run; use the folder that training wrote"
        )
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise WorkdirError(f"{path} is damaged (it is not text in UTF-8): restore it from a copy") from error
