"""Splits of a `folder` dataset: by files, by a field, by the names of the caption files, or by fractions."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from input_pipeline.annotations.encodings import iterate_csv_lines, read_text
from input_pipeline.buckets import BucketImage
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.files import is_on_bucket
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import SPLITS, Record, Report, Split, order_by_hash
from input_pipeline.sources.folder_images import FolderImage
from input_pipeline.sources.name_index import MatchCounts, NameIndex

log = logging.getLogger(__name__)


def assign_splits(
    images: list[FolderImage], hints: dict[str, str], spec: DataSpec, root: Path, report: Report, limits: Limits
) -> dict[str, str]:
    """Sets the split of each image.

    Args:
        images: all images of the caption files.
        hints: the caption files that specify a split, by split.
        spec: `config.data`.
        root: folder of the dataset.
        report: receives images without a split, and names in split files without an image.
        limits: `config.limits`.

    Returns:
        The splits that the dataset must have, and what defines them, for error messages.

    Raises:
        DataError: the splits are defined in two ways, or a split file does not exist or lists no image.
    """
    files = {split: name for split, name in dataclasses.asdict(spec.split_files).items() if name}
    fractions = {split: fraction for split, fraction in dataclasses.asdict(spec.split_fractions).items() if fraction}
    if files:
        source = "config.data.split_files"
        named = {split: f"{name} (config.data.split_files.{split})" for split, name in files.items()}
        names = {split: _read_names(root / name, split, limits) for split, name in files.items()}
        _split_by_files(images, names, files, root / spec.images, report)
    elif spec.split_field or any(image.split for image in images):
        source = f"the field {spec.split_field or 'split'!r} of the caption files"
        named = dict.fromkeys((image.split for image in images if image.split), source)
        unassigned = [image for image in images if not image.split]
        report.extend("images without a split", (image.name for image in unassigned))
        for image in unassigned:
            image.is_dropped = True
    elif hints:
        source = "the names of the caption files"
        named = {split: f"{name} (config.data.captions)" for split, name in hints.items()}
        for image in images:
            image.split = image.hint or "train"
    else:
        source = ""
        named = dict.fromkeys(("train", *fractions), "config.data.split_fractions") if fractions else {}
        split_by_fractions([image for image in images if not image.is_dropped], fractions)
    if source and fractions:
        raise DataError(
            f"the splits are defined by both {source} and config.data.split_fractions; set the fractions to 0 or "
            "remove the former"
        )
    return named


def _split_by_files(
    images: list[FolderImage], names: dict[str, list[str]], files: dict[str, str], folder: Path, report: Report
) -> None:
    """Assigns the images that are listed by their names in the caption files, or by the paths of their files."""
    by_name = _index_names(images, folder)
    for image in images:
        image.split = ""
    index: NameIndex | None = None
    counts = MatchCounts()
    for split, names_of_split in names.items():
        for name in names_of_split:
            image = by_name.get(name)
            if image is None:
                index = index or NameIndex(name for name in by_name if "\\" not in name)
                image = _match(name, by_name, index, counts)
            if image is None:
                report.add("images in a split file without captions", f"{name} ({os.path.basename(files[split])})")
            elif image.split and image.split != split:
                report.add("images in two splits", f"{name}: {image.split} and {split}")
                image.is_dropped = True
            else:
                image.split = split
    if counts:
        log.info("names in the split files: %s", counts)
    unassigned = sum(not image.split for image in images)
    if unassigned:
        log.info("%d images with captions are not in any split file and are not used.", unassigned)


def _index_names(images: list[FolderImage], folder: Path) -> dict[str, FolderImage]:
    """Returns images by name and by path. Names of several images, in different folders, are omitted."""
    by_name: dict[str, FolderImage] = {}
    repeated = set()
    for image in images:
        for name in {image.name, image.name.replace("\\", "/")}:
            if by_name.setdefault(name, image) is not image:
                repeated.add(name)
    for name in repeated:
        del by_name[name]
    for image in images:
        if image.path is not None and image.path.is_relative_to(folder):
            by_name.setdefault(image.path.relative_to(folder).as_posix(), image)
    return by_name


def _read_names(path: Path, split: str, limits: Limits) -> list[str]:
    try:
        lines = iterate_csv_lines(read_text(path, limits.caption_file_bytes))
        names = [name for name in map(str.strip, lines) if name]
    except MissingFileError:
        raise DataError(f"no such file: {path} (config.data.split_files.{split})") from None
    if not names:
        raise DataError(f"{path} is empty (config.data.split_files.{split}); it must list one image name per line")
    return names


def _match(name: str, by_name: dict[str, FolderImage], index: NameIndex, counts: MatchCounts) -> FolderImage | None:
    match = index.find(name)
    images = {id(image): image for path in match.paths if (image := by_name.get(path)) is not None}
    if len(images) != 1:
        return None
    counts.add(name, match.paths[0], match.differences)
    return next(iter(images.values()))


class SplitImage(Protocol):
    """An image whose split can be set."""

    image_id: str | int
    split: str


def split_by_fractions(images: Sequence[SplitImage], fractions: Mapping[str, float]) -> None:
    """Assigns splits by a hash of the image id, which does not depend on the machine or the order of images."""
    shuffled = order_by_hash(images, lambda image: image.image_id)
    for image in shuffled:
        image.split = "train"
    start = 0
    for split, fraction in sorted(fractions.items()):
        count = max(1, round(fraction * len(shuffled)))
        for image in shuffled[start : start + count]:
            image.split = split
        start += count


def make_splits(
    images: Iterable[FolderImage], named: dict[str, str], root: Path, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Split]:
    """Returns the splits that have usable images.

    Args:
        images: images with splits; those that are dropped or have no split are not used.
        named: splits that must not be empty, and what defines them.
        root: folder of the dataset, for error messages.
        limits: `config.limits`.

    Raises:
        DataError: a named split is empty.
    """
    records: dict[str, list[Record]] = {}
    for image in images:
        if image.split and not image.is_dropped:
            records.setdefault(image.split, []).append(_make_record(image, limits))
    if records:
        for split, origin in named.items():
            if split not in records:
                counts = ", ".join(f"{name} ({len(records[name])})" for name in SPLITS if name in records)
                raise DataError(
                    f"{root}: the split {split!r} is empty: no usable image is in it, but it is defined by {origin}; "
                    f"the dataset has {counts}. Add images to it, or remove its definition"
                )
    return {split: Split(split, records[split]) for split in SPLITS if split in records}


def _make_record(image: FolderImage, limits: Limits) -> Record:
    path = os.fspath(image.path)
    content = BucketImage(path, limits.image_file_bytes) if is_on_bucket(path) else Path(path)
    return Record(content, tuple(image.captions), image.image_id, name=path)
