"""Result and annotation files: COCO results JSON, COCO caption JSON, Karpathy's `dataset_*.json`."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

from input_pipeline.errors import DataError

_SHOWN = 10  # ids that a message names before it only counts


class ResultsError(DataError):
    """A file that does not have the form it should; the message names the file and what is wrong."""


class ImageSetError(DataError):
    """Results and references are not about the same images; the message lists the difference."""


def write_results(path: str | os.PathLike[str], captions: Mapping[Hashable, str]) -> None:
    """Writes captions in COCO results form, `[{"image_id": .., "caption": ..}, ...]`, in the order given."""
    rows = [{"image_id": image_id, "caption": caption} for image_id, caption in captions.items()]
    target = path if hasattr(path, "write_text") else Path(path)  # a path on a bucket stays what it is
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(json.dumps(rows, indent=0, ensure_ascii=False) + "\n")
    partial.replace(target)


def read_results(path: str | os.PathLike[str]) -> dict[Hashable, str]:
    """Reads COCO results JSON.

    Returns:
        Image id -> caption, in the order of the file.

    Raises:
        ResultsError: the file is not of that form, or an image occurs twice (the first ten are named).
    """
    rows = _load(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ResultsError(f'{path}: COCO results are a list of {{"image_id": .., "caption": ..}} objects')
    for position, row in enumerate(rows):
        if not isinstance(row.get("image_id"), int | str) or not isinstance(row.get("caption"), str):
            raise ResultsError(f'{path}: entry {position} lacks "image_id" or "caption": {json.dumps(row)[:100]}')
    counts = Counter(row["image_id"] for row in rows)
    twice = [image_id for image_id, count in counts.items() if count > 1]
    if twice:
        raise ResultsError(f"{path}: {len(twice)} images have more than one caption: {_listed(twice)}")
    return {row["image_id"]: row["caption"] for row in rows}


def read_annotations(path: str | os.PathLike[str], *, split: str = "", ids: str = "id") -> dict[Hashable, list[str]]:
    """Reads reference captions from COCO caption JSON, Karpathy's JSON, or a CSV file with columns image and caption.

    Args:
        path: the file.
        split: Karpathy's JSON: the split to take, such as "test"; CSV: a text file of image names, one a line. "" for
            all.
        ids: what to call an image: "id" (its number; in Karpathy's files `cocoid`, else `imgid`) or "file_name". A
            CSV file knows names only.

    Returns:
        Image id -> its captions, for every image that has some.

    Raises:
        ResultsError: the file is of neither form, or has no image of the split.
    """
    if ids not in ("id", "file_name"):
        raise ValueError(f'ids is {ids!r}; choose "id" or "file_name"')
    if Path(path).suffix.lower() == ".csv":
        return _csv(path, split)
    content = _load(path)
    try:
        if "annotations" in content:
            captions = _coco(content, ids)
        elif "images" in content:
            captions = _karpathy(content, ids, split)
        else:
            raise KeyError("annotations")
    except (KeyError, TypeError) as error:
        raise ResultsError(f"{path}: neither COCO caption JSON nor Karpathy's JSON (missing: {error})") from error
    if not captions:
        raise ResultsError(f"{path}: no image with captions" + (f" in split {split!r}" if split else ""))
    return captions


def _coco(content: dict[str, Any], ids: str) -> dict[Hashable, list[str]]:
    names = {image["id"]: image[ids] for image in content["images"]} if ids == "file_name" else {}
    captions: dict[Hashable, list[str]] = {}
    for annotation in content["annotations"]:
        image_id = annotation["image_id"]
        captions.setdefault(names.get(image_id, image_id), []).append(annotation["caption"])
    return captions


def _karpathy(content: dict[str, Any], ids: str, split: str) -> dict[Hashable, list[str]]:
    captions: dict[Hashable, list[str]] = {}
    for image in content["images"]:
        if split and image["split"] != split:
            continue
        name = image["filename"] if ids == "file_name" else image.get("cocoid", image.get("imgid"))
        captions.setdefault(name, []).extend(sentence["raw"] for sentence in image["sentences"])
    return captions


def _csv(path: str | os.PathLike[str], split: str) -> dict[Hashable, list[str]]:
    wanted = set(Path(split).read_text(encoding="utf-8").split("\n")) if split else None
    captions: dict[Hashable, list[str]] = {}
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if not {"image", "caption"} <= set(rows.fieldnames or ()):
            raise ResultsError(f"{path}: the first line must name the columns image and caption: {rows.fieldnames}")
        for row in rows:
            if wanted is None or row["image"] in wanted:
                captions.setdefault(row["image"], []).append(row["caption"] or "")
    if not captions:
        raise ResultsError(f"{path}: no image with captions" + (f" among those of {split}" if split else ""))
    return captions


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


def _load(path: str | os.PathLike[str]) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not JSON ({error})") from error
