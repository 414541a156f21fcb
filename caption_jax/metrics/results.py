"""Files of results and of reference captions, in the forms that training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path

from input_pipeline.annotations import Row, read_rows, read_text
from input_pipeline.errors import DataError
from input_pipeline.files import write_atomically

_SHOWN = 10  # ids that a message names before it only counts


class ResultsError(DataError):
    """A file that does not have the form it should; the message names the file and what is wrong."""


class ImageSetError(DataError):
    """Results and references are not about the same images; the message lists the difference."""


def write_results(path: str | os.PathLike[str], captions: Mapping[Hashable, str]) -> None:
    """Writes captions in COCO results form, `[{"image_id": .., "caption": ..}, ...]`, in the order given."""
    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    write_atomically(path, json.dumps(rows, indent=0, ensure_ascii=False) + "\n")


def read_results(path: str | os.PathLike[str]) -> dict[Hashable, str]:
    """Reads one caption for each image: COCO results JSON, or any other form that `read_annotations` reads.

    Returns:
        Image id, or file name where the file has no ids, -> caption, in the order of the file.

    Raises:
        MissingFileError: there is no such file.
        ResultsError: the file is not of such a form, or an image occurs twice (the first ten are named).
    """
    captions: dict[Hashable, list[str]] = {}
    for row in _rows(path):
        captions.setdefault(row.image_id, []).extend(row.captions)
    twice = [image_id for image_id, texts in captions.items() if len(texts) > 1]
    if twice:
        raise ResultsError(f"{path}: {len(twice)} images have more than one caption: {_listed(twice)}")
    return {image_id: text for image_id, texts in captions.items() for text in texts}


def read_annotations(path: str | os.PathLike[str], *, split: str = "", ids: str = "id") -> dict[Hashable, list[str]]:
    """Reads reference captions in any form that training reads.

    These are COCO caption JSON, Karpathy's JSON, JSON lines, CSV (also with tabs or semicolons) and Flickr8k's
    token.txt; `input_pipeline.annotations.ACCEPTED` shows them.

    Args:
        path: the file.
        split: the split to take, such as "test", as the file spells it; or a text file of image names, one a line. ""
            for all.
        ids: what to call an image: "id" (its number; in Karpathy's files `cocoid`, else `imgid`) or "file_name". A
            file that has no ids knows names only.

    Returns:
        Image id -> its captions, for every image that has some.

    Raises:
        MissingFileError: there is no such file.
        ResultsError: the file is in none of the forms, or has no image of the split.
    """
    if ids not in ("id", "file_name"):
        raise ValueError(f'ids is {ids!r}; choose "id" or "file_name"')
    rows = _rows(path)
    if split:
        rows = _of_split(path, rows, split)
    captions: dict[Hashable, list[str]] = {}
    for row in rows:
        number = row.image_id if row.number is None else row.number
        name = (row.image or row.image_id) if ids == "file_name" else number
        if row.captions:
            captions.setdefault(name, []).extend(row.captions)
    if not captions:
        raise ResultsError(f"{path}: no image with captions" + (f" in split {split!r}" if split else ""))
    return captions


def _rows(path: str | os.PathLike[str]) -> list[Row]:
    """All rows of a file; what cannot be used in it is an error, since a score over the rest would mislead."""
    problems: list[str] = []
    try:
        rows = list(read_rows(Path(path), lambda kind, name: problems.append(name), names_needed=False))
    except DataError as error:
        raise ResultsError(str(error)) from error
    if problems:
        shown = [*problems[:_SHOWN], *([f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else [])]
        raise ResultsError("\n  ".join([f"{path}: {len(problems)} entries cannot be used:", *shown]))
    return rows


def _of_split(path: str | os.PathLike[str], rows: list[Row], split: str) -> list[Row]:
    found = [row for row in rows if row.split == split]
    if found or not Path(split).is_file():
        return found
    names = {line.strip() for line in read_text(Path(split)).splitlines()}
    found = [row for row in rows if row.image in names]
    if not found:
        raise ResultsError(f"{path}: no image with captions among those of {split}")
    return found


def check_image_set(references: Collection[Hashable], hypotheses: Collection[Hashable]) -> None:
    """Makes sure that both are about the same images.

    Raises:
        ImageSetError: they are not; the message lists the first ten ids of each difference and their number.
    """
    wanted, found = set(references), set(hypotheses)
    if wanted == found:
        return
    lines = [f"the references have {len(wanted)} images, the results {len(found)}:"]
    missing = [image_id for image_id in references if image_id not in found]
    extra = [image_id for image_id in hypotheses if image_id not in wanted]
    if missing:
        lines.append(f"  {len(missing)} without a result: {_listed(missing)}")
    if extra:
        lines.append(f"  {len(extra)} without references: {_listed(extra)}")
    if {str(image_id) for image_id in wanted} & {str(image_id) for image_id in extra}:
        lines.append("  some differ only in that an id is a number in one and text in the other")
    raise ImageSetError("\n".join(lines))


def _listed(image_ids: list[Hashable]) -> str:
    shown = ", ".join(repr(image_id) for image_id in image_ids[:_SHOWN])
    return shown + (f" and {len(image_ids) - _SHOWN} more" if len(image_ids) > _SHOWN else "")
