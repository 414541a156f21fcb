"""Reads and writes results files, reads reference captions, and selects the images that are scored.

References and results may be in any format supported for training. The same code reads them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

from caption_jax.metrics.argument_checks import check_hypotheses, check_image_ids
from input_pipeline.annotations import ACCEPTED, Row, iterate_lines, read_rows, read_text
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.files import write_atomically

SUBSETS = ("all", "common")
_MAX_LISTED = 10  # maximum number of ids or problems listed in an error message


class ResultsError(DataError):
    """A results or annotation file is malformed; the message names the file and the problem."""


class ImageSetError(DataError):
    """Results and references cover different images; the message lists the difference."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceImage:
    """An image with its reference captions.

    Attributes:
        image_id: the id in the file (`cocoid` or else `imgid` in Karpathy's files), or the file name if it has no ids.
        name: file name; "" if the file has only ids.
        captions: at least one caption.
    """

    image_id: Hashable
    name: str
    captions: list[str]


def write_results(path: str | os.PathLike[str], captions: Mapping[Hashable, str]) -> None:
    """Writes captions in COCO results format, `[{"image_id": .., "caption": ..}, ...]`, preserving their order.

    Raises:
        TypeError: `captions` is not a mapping with strings as values.
    """
    check_hypotheses(captions, "captions")
    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    write_atomically(path, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[Hashable, str]:
    """Reads one caption per image from COCO results JSON or any other format supported by `read_annotations`.

    The output of `caption --format=jsonl` is one of these formats. Images that could not be captioned, which have an
    error instead of a caption, are omitted.

    Returns:
        Image id (file name if the file has no ids) -> caption, in the order of the file.

    Raises:
        MissingFileError: the file does not exist.
        ResultsError: the format is not supported, or an image has several captions (the first ten are listed).
    """
    captions: dict[Hashable, list[str]] = {}
    for row in _read_valid_rows(path):
        captions.setdefault(row.image_id, []).extend(row.captions)
    if not any(captions.values()):
        raise ResultsError(f"{path}: contains no captions")
    duplicates = [image_id for image_id, image_captions in captions.items() if len(image_captions) > 1]
    if duplicates:
        raise ResultsError(
            f"{path}: {len(duplicates)} images have more than one caption: {_format_ids(duplicates)}. "
            "Results have one caption per image; if these are the references, exchange the two files"
        )
    return {image_id: caption for image_id, image_captions in captions.items() for caption in image_captions}


def read_annotations(path: str | os.PathLike[str], *, split: str = "", ids: str = "id") -> dict[Hashable, list[str]]:
    """Reads reference captions in any format supported for training.

    See `input_pipeline.annotations.ACCEPTED` for the formats.

    Args:
        path: the file.
        split: name of a split in the file, such as "test", or a text file with one image name per line; all images if
            empty.
        ids: key of the result: "id" (`cocoid` or else `imgid` in Karpathy's files) or "file_name". File names are also
            used if the file has no ids.

    Returns:
        Image id -> captions, for every image that has at least one caption.

    Raises:
        MissingFileError: the file does not exist.
        ResultsError: the format is not supported, or the split has no images with captions.
        ValueError: `ids` is invalid.
    """
    if ids not in ("id", "file_name"):
        raise ValueError(f'ids must be "id" or "file_name", got {ids!r}')
    captions: dict[Hashable, list[str]] = {}
    for image in read_references(path, split=split):
        key = (image.name or image.image_id) if ids == "file_name" else image.image_id
        captions.setdefault(key, []).extend(image.captions)
    return captions


def read_references(path: str | os.PathLike[str], *, split: str = "") -> list[ReferenceImage]:
    """Reads the images of a file with their ids, names and reference captions, in the order of the file.

    Args:
        path: see `read_annotations`.
        split: see `read_annotations`.

    Raises:
        MissingFileError: the file does not exist.
        ResultsError: the format is not supported, the split has no images with captions, or a caption is empty.
    """
    rows = _read_valid_rows(path)
    if split:
        rows = _select_split(path, rows, split)
    images: dict[Hashable, ReferenceImage] = {}
    for row in rows:
        if row.captions:
            image_id = row.image_id if row.number is None else row.number
            image = images.setdefault(image_id, ReferenceImage(image_id, row.image, []))
            image.captions.extend(row.captions)
    if not images:
        raise ResultsError(f"{path}: no image with captions" + (f" in split {split!r}" if split else ""))
    empty = [image.image_id for image in images.values() if not all(map(str.strip, image.captions))]
    if empty:
        raise ResultsError(
            f"{path}: empty reference captions, which would match empty results; remove them: {_format_ids(empty)}"
        )
    return list(images.values())


def _read_valid_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Reads all rows of a file. Unusable entries are errors, because scores without them would be misleading."""
    first: list[str] = []
    count = 0

    def add_problem(kind: str, problem: str) -> None:
        nonlocal count
        count += 1
        if count <= _MAX_LISTED:
            first.append(problem)

    try:
        rows = list(read_rows(Path(path), add_problem, require_names=False))
    except DataError as error:
        message = str(error)
        if ACCEPTED in message:  # one line; the documentation lists the formats
            message = message.replace(ACCEPTED, "docs/data.md lists the accepted formats")
        raise ResultsError(message) from error
    if count == 1:
        raise ResultsError(first[0])  # it names the file
    if first:
        lines = [f"{path}: {count} entries cannot be used:", *first]
        if count > _MAX_LISTED:
            lines.append(f"and {count - _MAX_LISTED} more")
        raise ResultsError("\n  ".join(lines))
    if not rows:
        raise ResultsError(f"{path}: contains no captions")
    return rows


def _select_split(path: str | os.PathLike[str], rows: list[Row], split: str) -> list[Row]:
    selected = [row for row in rows if row.split == split]
    if selected or not Path(split).is_file():
        return selected
    names = {line.strip() for _, line in iterate_lines(read_text(Path(split)))}
    selected = [row for row in rows if row.image in names]
    if not selected:
        raise ResultsError(f"{path}: no image with captions among those listed in {split}")
    return selected


def check_image_set(references: Collection[Hashable], hypotheses: Collection[Hashable]) -> None:
    """Checks that references and hypotheses cover the same images.

    Raises:
        TypeError: an argument is not a collection of image ids.
        ImageSetError: they do not; the message contains the number of missing and extra ids and the first ten of each.
    """
    check_image_ids("references", references)
    check_image_ids("hypotheses", hypotheses)
    reference_ids, hypothesis_ids = set(references), set(hypotheses)
    if reference_ids == hypothesis_ids:
        return
    parts = []
    missing = [image_id for image_id in references if image_id not in hypothesis_ids]
    extra = [image_id for image_id in hypotheses if image_id not in reference_ids]
    if missing:
        parts.append(f"{len(missing)} without a result: {_format_ids(missing)}")
    if extra:
        parts.append(f"{len(extra)} without references: {_format_ids(extra)}")
    if {str(image_id) for image_id in reference_ids} & {str(image_id) for image_id in extra}:
        parts.append("some ids differ only in type: a number in one and text in the other")
    common = len(reference_ids & hypothesis_ids)
    if common:
        parts.append(f"to score only images that have both ({common}), use subset='common' (--subset=common)")
    counts = f"the references have {len(reference_ids)} images, the results {len(hypothesis_ids)}"
    raise ImageSetError(f"{counts}: {'; '.join(parts)}")


def select_images(
    references: Collection[Hashable], *hypotheses: Collection[Hashable], subset: str = "all"
) -> list[Hashable]:
    """Returns the ids of the images to score, in the order of the references.

    Args:
        references: image ids, or a mapping with these keys.
        hypotheses: the same for one or more systems.
        subset: "all" requires that all arguments cover the same images; "common" selects those in all arguments.

    Raises:
        TypeError: an argument is not a collection of image ids.
        ImageSetError: `subset` is "all" and the images differ, or it is "common" and there are no common images.
        ConfigError: `subset` is unknown.
    """
    if subset not in SUBSETS:
        raise ConfigError(f"subset is {subset!r}; it must be one of {', '.join(map(repr, SUBSETS))}")
    check_image_ids("references", references)
    for ids in hypotheses:
        check_image_ids("hypotheses", ids)
        if subset == "all" or not set(references) & set(ids):
            check_image_set(references, ids)
    common = set(references).intersection(*hypotheses)
    if references and not common:
        raise ImageSetError("the references and the results have no images in common")
    return [image_id for image_id in references if image_id in common]


def describe_subset(references: Collection[Hashable], *hypotheses: Collection[Hashable]) -> str:
    """Describes which images `subset="common"` selects, with counts, for the evaluation protocol."""
    common = select_images(references, *hypotheses, subset="common")
    without_references = set().union(*hypotheses).difference(references)
    excluded = f"{len(references) - len(common)} without a result and {len(without_references)} without references"
    return f"common: {len(common)} of the {len(references)} images with references; {excluded} are excluded"


def _format_ids(image_ids: list[Hashable]) -> str:
    text = ", ".join(repr(image_id) for image_id in image_ids[:_MAX_LISTED])
    return text + (f" and {len(image_ids) - _MAX_LISTED} more" if len(image_ids) > _MAX_LISTED else "")
