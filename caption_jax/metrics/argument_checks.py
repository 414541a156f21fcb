"""Type checks of the arguments of public functions.

A string is also a sequence of strings. Without these checks, a caption passed instead of a list of captions would be
scored as one caption per letter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from input_pipeline.errors import DataError
from input_pipeline.limits import DEFAULT_LIMITS


def check_references(references: Any) -> None:
    """Raises TypeError if an argument is not a mapping from image ids to lists of captions."""
    _check_mapping("references", references, "{1: ['a dog', 'a brown dog']}")
    for image_id, captions in references.items():
        if isinstance(captions, str | bytes) or not isinstance(captions, Sequence):
            raise TypeError(f"references[{image_id!r}] is {captions!r}; it must be a list of captions")
        for caption in captions:
            _check_caption(caption, f"references[{image_id!r}]", "contains")


def check_hypotheses(hypotheses: Any, name: str = "hypotheses") -> None:
    """Raises TypeError if an argument is not a mapping from image ids to single captions."""
    _check_mapping(name, hypotheses, "{1: 'a dog'}")
    for image_id, caption in hypotheses.items():
        _check_caption(caption, f"{name}[{image_id!r}]", "is")


def check_captions(name: str, captions: Any) -> list[str]:
    """Returns an iterable of captions as a list. Raises TypeError if it is a string or contains other types."""
    if isinstance(captions, str | bytes | Mapping) or not isinstance(captions, Iterable):
        raise TypeError(
            f"{name} must be a list of captions, such as ['a dog', 'two cats'], not a {_name_type(captions)}"
        )
    captions = list(captions)
    for caption in captions:
        _check_caption(caption, name, "contains")
    return captions


def check_image_ids(name: str, image_ids: Any) -> None:
    """Raises TypeError if an argument is not a collection of image ids (or a mapping with these keys)."""
    if isinstance(image_ids, str | bytes) or not isinstance(image_ids, Collection):
        raise TypeError(f"{name} must be a collection of image ids, such as [1, 2], not a {_name_type(image_ids)}")


def check_instance(name: str, value: Any, expected: type, source: str) -> None:
    """Raises TypeError if an argument is not of the expected type. `source` is the function that returns this type."""
    if not isinstance(value, expected):
        kind = _name_type(value)
        raise TypeError(f"{name} must be {expected.__name__} (the result of {source}), not a {kind}")


def _check_mapping(name: str, value: Any, example: str) -> None:
    if not isinstance(value, Mapping):
        kind = _name_type(value)
        raise TypeError(f"{name} must be a mapping with image ids as keys, such as {example}, not a {kind}")


def _check_caption(caption: Any, name: str, verb: str) -> None:
    if not isinstance(caption, str):
        raise TypeError(f"{name} {verb} {caption!r}; a caption must be a string")
    if len(caption) > DEFAULT_LIMITS.caption_characters:
        raise DataError(
            f"{name} {verb} a caption of {len(caption):,} characters, more than the limit of "
            f"{DEFAULT_LIMITS.caption_characters:,}; shorten it"
        )


def _name_type(value: Any) -> str:
    return type(value).__name__
