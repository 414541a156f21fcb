"""Matches the images of a results file with those of the references if their ids are written in different ways."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

from caption_jax.metrics.results import ImageSetError, ReferenceImage
from input_pipeline.image_formats import NAME_SUFFIXES

_Pairs = dict[Hashable, ReferenceImage]  # key in the results -> reference image

_COCO_NAME = re.compile(r"COCO_\w+_(\d{12})")  # the file names of 2014: COCO_val2014_000000391895.jpg


@dataclasses.dataclass(frozen=True)
class Match:
    """The reference images that the images of a results file correspond to.

    Attributes:
        images: key in the results -> reference image; keys that match no reference are missing.
        by_id: whether the results identify images by id rather than by file name.
        description: how the images were matched; "" if their ids or names are identical.
    """

    images: _Pairs
    by_id: bool
    description: str = ""

    def rename(self, results: Mapping[Hashable, str], *, by_id: bool) -> dict[Hashable, str]:
        """Returns the captions with the keys of `key_references`. Keys that match no reference are unchanged."""
        images = self.images
        return {_get_key(images[key], by_id) if key in images else key: caption for key, caption in results.items()}


@dataclasses.dataclass(frozen=True)
class _Way:
    """A way to compare images: equal values are the same image, and None matches nothing."""

    name: str
    by_id: bool
    reference_value: Callable[[ReferenceImage], Hashable | None]
    result_value: Callable[[Hashable], Hashable | None]


def match_images(references: Sequence[ReferenceImage], results: Collection[Hashable], path: str = "") -> Match:
    """Identifies the images of results by id, by file name, or else by a part of them that both have in common.

    All images are identified in the same way: the one that identifies most of them. In order of precedence, the ways
    are: equal ids; equal file names; the same number, as in "391895" and 391895; paths with the same last three, two or
    one components; file names that differ only in their suffix; and if the references have no file names, names that
    contain the id, as COCO's do.

    Args:
        references: the images of the references.
        results: the image ids or names in the results.
        path: the results file, for messages.

    Raises:
        ImageSetError: no image can be identified, or not one to one: an id or name fits several images, or two ways
            disagree.
    """
    best, pairs, ambiguous = _WAYS[0], {}, []
    for way in _WAYS:
        candidates, candidate_ambiguous = _find_pairs(way, references, results)
        if len(candidates) > len(pairs):
            best, pairs, ambiguous = way, candidates, candidate_ambiguous
        elif best.name and len(candidates) == len(pairs) and not ambiguous and not candidate_ambiguous:
            _check_agreement(path, best, pairs, way, candidates)
        if not way.name and len(pairs) == len(results):
            break  # identical ids or names leave no doubt
    if not pairs:
        first = references[0]
        known = ", ".join(dict.fromkeys(repr(key) for key in (first.image_id, first.name) if key != ""))
        shown = ", ".join(map(repr, list(results)[:3]))
        raise ImageSetError(
            f"{path}: no image matches the references: their first image is {known}, and the results have {shown}; "
            "write the ids or the file names of the references"
        )
    if ambiguous:
        shown = ", ".join(map(repr, ambiguous[:3]))
        raise ImageSetError(
            f"{path}: images can be matched with the references only by {best.name or 'name'}, which is not one to "
            f"one: {shown} fits several images; write the ids or the full file names of the references"
        )
    return Match(pairs, best.by_id, _describe(best, pairs, len(results)) if best.name else "")


def key_references(references: Sequence[ReferenceImage], *, by_id: bool) -> dict[Hashable, list[str]]:
    """Returns the reference captions by image id or by file name, the keys of `Match.rename`."""
    captions: dict[Hashable, list[str]] = {}
    for image in references:
        captions.setdefault(_get_key(image, by_id), []).extend(image.captions)
    return captions


def _get_key(image: ReferenceImage, by_id: bool) -> Hashable:
    return image.image_id if by_id else image.name or image.image_id


def _find_pairs(
    way: _Way, references: Sequence[ReferenceImage], results: Collection[Hashable]
) -> tuple[_Pairs, list[Hashable]]:
    """Returns result key -> reference image, and the keys of results that do not fit exactly one image."""
    values = {key: value for key in results if (value := way.result_value(key)) is not None}
    result_counts = Counter(values.values())
    by_value: dict[Hashable, list[ReferenceImage]] = {}
    for image in references:
        by_value.setdefault(way.reference_value(image), []).append(image)
    pairs = {key: by_value[value][0] for key, value in values.items() if value in by_value}
    ambiguous = [key for key in pairs if len(by_value[values[key]]) > 1 or result_counts[values[key]] > 1]
    return pairs, ambiguous


def _check_agreement(path: str, way: _Way, pairs: _Pairs, other: _Way, others: _Pairs) -> None:
    for key, image in others.items():
        if key in pairs and pairs[key] is not image:
            raise ImageSetError(
                f"{path}: {key!r} is image {pairs[key].image_id!r} by {way.name}, but image {image.image_id!r} by "
                f"{other.name}; write the ids or the full file names of the references"
            )


def _describe(way: _Way, pairs: _Pairs, count: int) -> str:
    key, image = next(iter(pairs.items()))
    name = f" ({image.name})" if image.name and image.name != image.image_id else ""
    return f"{len(pairs)} of {count} images matched by {way.name}: {key!r} is image {image.image_id!r}{name}"


def _get_name(key: Hashable, components: int, *, with_suffix: bool) -> str | None:
    """Returns the last components of a path. None for numbers."""
    if not isinstance(key, str):
        return None
    name = "/".join(re.split(r"[\\/]+", key)[-components:])
    suffix = next((suffix for suffix in NAME_SUFFIXES if name.lower().endswith(suffix)), "")
    return name if with_suffix else name[: len(name) - len(suffix)]


def _get_number(key: Hashable) -> int | None:
    """Returns the number that an id is or denotes: 22 for 22, 22.0, "22" and "000022"."""
    if isinstance(key, str):
        return int(key) if key.isascii() and key.isdigit() else None
    return int(key) if isinstance(key, int) or (isinstance(key, float) and key.is_integer()) else None


def _get_number_of_name(key: Hashable) -> int | None:
    name = _get_name(key, 1, with_suffix=False)
    if name is None:
        return _get_number(key)
    match = _COCO_NAME.fullmatch(name)
    return _get_number(match[1] if match else name)


def _make_name_way(name: str, components: int, *, with_suffix: bool) -> _Way:
    return _Way(
        name,
        False,
        lambda image: _get_name(image.name or image.image_id, components, with_suffix=with_suffix),
        lambda key: _get_name(key, components, with_suffix=with_suffix),
    )


_WAYS = (
    _Way("", True, lambda image: image.image_id, lambda key: key),
    _Way("", False, lambda image: image.name or image.image_id, lambda key: key),
    _Way("number", True, lambda image: _get_number(image.image_id), _get_number),
    _make_name_way("the last three components of paths", 3, with_suffix=True),
    _make_name_way("the last two components of paths", 2, with_suffix=True),
    _make_name_way("file name without folder", 1, with_suffix=True),
    _make_name_way("file name without folder and suffix", 1, with_suffix=False),
    _Way(
        "the number in the file name",
        True,
        lambda image: None if image.name not in ("", image.image_id) else _get_number_of_name(image.image_id),
        _get_number_of_name,
    ),
)
