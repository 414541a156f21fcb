"""Checks of `model.json` and `preprocessing.json`, which may be damaged or come from a stranger."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from caption_jax.errors import WorkdirError
from caption_jax.runs.description import ModelSettings, RunDescription
from input_pipeline.data_spec import INTERPOLATIONS, RESIZE_MODES
from input_pipeline.images import Preprocessing
from input_pipeline.spec_checks import Constraint, one_of

_REMEDY = "restore it from a copy, or from the workdir of the run"
_MAX_SIDE, _MAX_LENGTH, _MAX_TOKENS, _MAX_SETTING = 2**15, 2**16, 2**22, 2**31


def _whole_number(low: int, high: int) -> Constraint:
    return Constraint(
        f"a whole number from {low} to {high:,}", lambda value: type(value) is int and low <= value <= high
    )


def _numbers(description: str, is_met: Callable[[float], bool]) -> Constraint:
    def is_met_by_all(value: Any) -> bool:
        is_triple = isinstance(value, list | tuple) and len(value) == 3
        return is_triple and all(type(x) in (int, float) and abs(x) < math.inf and is_met(x) for x in value)

    return Constraint(f"a list of three {description}", is_met_by_all)


def _is_setting(value: Any) -> bool:
    return isinstance(value, str) or (type(value) in (int, float) and 0 <= value < _MAX_SETTING)


_PREPROCESSING = {
    "size": _whole_number(1, _MAX_SIDE),
    "resize": one_of(*RESIZE_MODES),
    "interpolation": one_of(*INTERPOLATIONS),
    "mean": _numbers("finite numbers", lambda value: True),
    "std": _numbers("positive numbers", lambda value: value > 0),
    "pixels": _whole_number(0, _MAX_SIDE),
}
_MODEL_SETTINGS = {
    "vocabulary_size": _whole_number(4, _MAX_TOKENS),
    "max_length": _whole_number(3, _MAX_LENGTH),
    "backbone": Constraint("an object", lambda value: isinstance(value, dict)),
    "text_encoder": Constraint(
        "null, or an object of names and of numbers that are not negative",
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_setting, value.values()))),
    ),
    "joint_embedding": Constraint("true or false", lambda value: isinstance(value, bool)),
}


def parse_preprocessing(content: Any, path: Any) -> Preprocessing:
    """Parses the content of `preprocessing.json`.

    Raises:
        WorkdirError: it is damaged. The message names the file and the key.
    """
    _check(content, _PREPROCESSING, ("size", "interpolation", "mean", "std"), path)
    return _build(lambda: Preprocessing.from_json(json.dumps(content)), path)


def parse_model_settings(content: Any, path: Any) -> ModelSettings:
    """Parses the content of `model.json`.

    Raises:
        WorkdirError: it is damaged. The message names the file and the key.
    """
    _check(content, _MODEL_SETTINGS, ("vocabulary_size", "max_length"), path)
    return _build(lambda: ModelSettings.from_json(content), path)


def check_backbone(description: RunDescription, path: Any) -> None:
    """Checks the settings of the image backbone in `model.json`.

    Raises:
        WorkdirError: they are damaged, or those of another backbone.
    """
    encoder = description.spec.model.encoder
    defaults = {field.name: field.default for field in dataclasses.fields(encoder.settings_class)}
    for key, value in description.model_settings.backbone.items():
        default = defaults.get(key)
        kinds = (int, float) if isinstance(default, float) else (list, tuple) if isinstance(default, tuple) else None
        is_valid = key in defaults and type(value) in (kinds or (type(default),))
        if not is_valid or (isinstance(value, float) and not math.isfinite(value)):
            raise WorkdirError(
                f"{path}: backbone.{key} is {value!r:.100}, which is no setting of {type(encoder).__name__}: {_REMEDY}"
            )
    try:
        _ = description.backbone_settings
    except (TypeError, ValueError) as error:
        raise WorkdirError(f"{path}: backbone is damaged ({_describe(error)}): {_REMEDY}") from error


def check_vocabulary_size(settings: ModelSettings, size: int, path: Any) -> None:
    """Raises WorkdirError if `model.json` belongs to another vocabulary."""
    if settings.vocabulary_size != size:
        raise WorkdirError(
            f"{path}: vocabulary_size is {settings.vocabulary_size:,}, but the vocabulary in tokenizer/ has {size:,} "
            f"tokens, so a file belongs to another run: {_REMEDY}"
        )


def _check(content: Any, constraints: dict[str, Constraint], required: tuple[str, ...], path: Any) -> None:
    if not isinstance(content, dict):
        raise WorkdirError(f"{path} is damaged (it contains a {type(content).__name__}, not an object): {_REMEDY}")
    for key in required:
        if key not in content:
            raise WorkdirError(f"{path} is damaged (it has no {key}): {_REMEDY}")
    for key, constraint in constraints.items():
        if key in content and not constraint.is_met(content[key]):
            raise WorkdirError(
                f"{path} is damaged ({key} is {content[key]!r:.100}; it must be {constraint.description}): {_REMEDY}"
            )


def _build(build: Callable[[], Any], path: Any) -> Any:
    try:
        return build()
    except (TypeError, ValueError) as error:
        raise WorkdirError(f"{path} is damaged ({_describe(error)}): {_REMEDY}") from error


def _describe(error: Exception) -> str:
    return str(error).partition("\n")[0].rpartition(".__init__() ")[2][:200]
