"""Reads and writes results files, and reads reference captions in the formats supported for training."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

from input_pipeline.annotations import Row, read_rows, read_text
from input_pipeline.errors import DataError
from input_pipeline.files import write_atomically

_MAX_LISTED = 10  # maximum number of ids or problems listed in an error message


class ResultsError(DataError):
    """A results or annotation file is malformed; the message names the file and the problem."""


class ImageSetError(DataError):
    """Results and references cover different images; the message lists the difference."""


def write_results(path: str | os.PathLike[str], captions: Mapping[Hashable, str]) -> None:
    """Writes captions in COCO results format, `[{"image_id": .., "caption": ..}, ...]`, preserving their order."""
    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    write_atomically(path, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[Hashable, str]:
    """Reads one caption per image from COCO results JSON or any other format supported by `read_annotations`.

    Returns:
        Image id (file name if the file has no ids) -> caption, in the order of the file.

    Raises:
        MissingFileError: the file does not exist.
        ResultsError: the format is not supported, or an image occurs more than once (the first ten are listed).
    """
    captions: dict[Hashable, list[str]] = {}
    for row in _read_valid_rows(path):
        captions.setdefault(row.image_id, []).extend(row.captions)
    duplicates = [image_id for image_id, image_captions in captions.items() if len(image_captions) > 1]
    if duplicates:
        raise ResultsError(f"{path}: {len(duplicates)} images have more than one caption: {_format_ids(duplicates)}")
    return {image_id: caption for image_id, image_captions in captions.items() for caption in image_captions}


def read_annotations(path: str | os.PathLike[str], *, split: str = "", ids: str = "id") -> dict[Hashable, list[str]]:
    """Reads reference captions in any format supported for training.

    The formats are COCO caption JSON, Karpathy's JSON, JSON lines, CSV (separated by commas, tabs or semicolons) and
    Flickr8k's token.txt; see `input_pipeline.annotations.ACCEPTED` for examples.

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
    rows = _read_valid_rows(path)
    if split:
        rows = _select_split(path, rows, split)
    captions: dict[Hashable, list[str]] = {}
    for row in rows:
        image_id = row.image_id if row.number is None else row.number
        key = (row.image or row.image_id) if ids == "file_name" else image_id
        if row.captions:
            captions.setdefault(key, []).extend(row.captions)
    if not captions:
        raise ResultsError(f"{path}: no image with captions" + (f" in split {split!r}" if split else ""))
    return captions


def _read_valid_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Reads all rows of a file. Unusable entries are errors, because scores without them would be misleading."""
    problems: list[str] = []
    try:
        rows = list(read_rows(Path(path), lambda kind, name: problems.append(name), require_names=False))
    except DataError as error:
        raise ResultsError(str(error)) from error
    if problems:
        lines = [f"{path}: {len(problems)} entries cannot be used:", *problems[:_MAX_LISTED]]
        if len(problems) > _MAX_LISTED:
            lines.append(f"and {len(problems) - _MAX_LISTED} more")
        raise ResultsError("\n  ".join(lines))
    return rows


def _select_split(path: str | os.PathLike[str], rows: list[Row], split: str) -> list[Row]:
    selected = [row for row in rows if row.split == split]
    if selected or not Path(split).is_file():
        return selected
    names = {line.strip() for line in read_text(Path(split)).splitlines()}
    selected = [row for row in rows if row.image in names]
    if not selected:
        raise ResultsError(f"{path}: no image with captions among those listed in {split}")
    return selected


def check_image_set(references: Collection[Hashable], hypotheses: Collection[Hashable]) -> None:
    """Checks that references and hypotheses cover the same images.

    Raises:
        ImageSetError: they do not; the message contains the number of missing and extra ids and the first ten of each.
    """
    reference_ids, hypothesis_ids = set(references), set(hypotheses)
    if reference_ids == hypothesis_ids:
        return
    lines = [f"the references have {len(reference_ids)} images, the results {len(hypothesis_ids)}:"]
    missing = [image_id for image_id in references if image_id not in hypothesis_ids]
    extra = [image_id for image_id in hypotheses if image_id not in reference_ids]
    if missing:
        lines.append(f"  {len(missing)} without a result: {_format_ids(missing)}")
    if extra:
        lines.append(f"  {len(extra)} without references: {_format_ids(extra)}")
    if {str(image_id) for image_id in reference_ids} & {str(image_id) for image_id in extra}:
        lines.append("  some ids differ only in type: a number in one and text in the other")
    raise ImageSetError("\n".join(lines))


def _format_ids(image_ids: list[Hashable]) -> str:
    text = ", ".join(repr(image_id) for image_id in image_ids[:_MAX_LISTED])
    return text + (f" and {len(image_ids) - _MAX_LISTED} more" if len(image_ids) > _MAX_LISTED else "")
