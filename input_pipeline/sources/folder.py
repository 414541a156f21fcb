"""The `folder` source: an image folder, caption files in any accepted format, and splits by file, field or fraction."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from input_pipeline.annotations import Row, read_rows
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.records import SPLITS, Record, Report, Split
from input_pipeline.sources.split_names import SPLIT_NAMES

log = logging.getLogger(__name__)


def open_folder(spec: DataSpec) -> dict[str, Split]:
    """Opens images and captions on disk, and reports problems with them.

    The split of an image is determined by the first of the following that applies: `split_files`, a split field in the
    caption files, the name of the caption file (`captions_val2017.json`, or `val=any.json` in `config.data.captions`),
    or `split_fractions`. If none applies, all images are training images. Images are not decoded here, so unreadable
    ones are detected only when a batch is loaded.

    Raises:
        DataError: a file is missing or has an unknown format, or there are problems and `on_error` is "stop".
    """
    root = Path(spec.root or ".")
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; set config.data.root to the folder with the images and captions")
    report = Report(str(root))
    images: dict[str | int, _Image] = {}
    has_split_files = any(dataclasses.asdict(spec.split_files).values())  # they override all other sources of splits
    for entry in spec.captions:
        split, path = _parse_entry(entry, is_only_file=len(spec.captions) == 1)
        for row in _read_caption_file(root / path, spec.split_field, report):
            if has_split_files:
                row, split = dataclasses.replace(row, split=""), ""
            _merge(images, row, split, report)
    _check_captions(images, report)
    _find_files(images, root / spec.images, report)
    _assign_splits(images, spec, root, report)
    report.finish(
        spec.on_error,
        "Fix the files, or skip these entries with --config.data.on_error=skip. Images are searched for in "
        f"{root / spec.images} (config.data.images) and its subfolders.",
    )
    splits = _make_splits(images)
    if not splits:
        raise DataError(f"{root}: no usable image with a caption in {', '.join(spec.captions)}")
    return splits


class _Image:
    """What the caption files contain about one image, plus its file and split."""

    __slots__ = ("captions", "folder", "hint", "image_id", "is_dropped", "name", "path", "split")

    def __init__(self, row: Row):
        self.name = row.image
        self.image_id = row.image_id
        self.folder = row.folder
        self.captions: list[str] = []
        self.split = ""  # from a split file or field
        self.hint = ""  # split inferred from the name of the caption file
        self.path: Path | None = None
        self.is_dropped = False


def _parse_entry(entry: str, is_only_file: bool) -> tuple[str, str]:
    """Returns the split ("" if unspecified) and the path of an entry of config.data.captions."""
    name, separator, path = entry.partition("=")
    if separator and name in SPLIT_NAMES:
        return SPLIT_NAMES[name], path
    if is_only_file:  # even a file named train.json may contain all splits
        return "", entry
    words = re.split(r"[^a-z]+", Path(entry).stem.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return (splits.pop() if len(splits) == 1 else ""), entry


def _read_caption_file(path: Path, split_field: str, report: Report) -> Iterator[Row]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; config.data.captions must list caption files")
    try:
        return read_rows(path, report.add, split_field=split_field)
    except MissingFileError:
        raise DataError(f"no such file: {path}; set config.data.root and config.data.captions") from None


def _merge(images: dict[str | int, _Image], row: Row, hint: str, report: Report) -> None:
    image = images.get(row.image_id)
    if image is None:
        image = images[row.image_id] = _Image(row)
        image.hint = hint
    elif image.name != row.image:
        report.add("one image id for two files", f"{row.image_id}: {image.name} and {row.image}")
        return
    elif hint != image.hint:
        report.add("images in two splits", f"{image.name}: caption files of {image.hint or '?'} and {hint or '?'}")
        image.is_dropped = True
    if row.split:
        split = SPLIT_NAMES.get(row.split.lower())
        if split is None:
            report.add("unknown split names", f"{row.split!r} of {row.image} (expected {', '.join(SPLIT_NAMES)})")
            image.is_dropped = True
        elif image.split and image.split != split:
            report.add("images in two splits", f"{image.name}: {image.split} and {split}")
            image.is_dropped = True
        else:
            image.split = split
    image.captions += row.captions


def _check_captions(images: dict[str | int, _Image], report: Report) -> None:
    first_by_name: dict[tuple[str, str], _Image] = {}
    duplicates = 0
    for image in images.values():
        captions = [caption.strip() for caption in image.captions if caption.strip()]
        empty = len(image.captions) - len(captions)
        if empty:
            report.add("empty captions", f"{image.name} ({empty} of {len(image.captions)})")
        elif not captions:
            report.add("images without captions", image.name)
        image.is_dropped |= not captions
        duplicates += len(captions) - len(set(captions))
        image.captions = captions
        first = first_by_name.setdefault((image.folder, image.name), image)
        if first is not image:
            report.add("images listed twice", f"{image.name}: ids {first.image_id} and {image.image_id}")
            image.is_dropped = True
    if duplicates:  # annotators sometimes write the same sentence twice; metrics and training use both
        log.info("%d captions are identical to another caption of the same image; they are kept.", duplicates)


def _find_files(images: dict[str | int, _Image], folder: Path, report: Report) -> None:
    """Locates the image files. Lists each folder once, which is faster than one stat per file on network disks."""
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}; set config.data.images to the image folder")
    listings: dict[Path, frozenset[str]] = {}

    def exists(path: Path) -> bool:
        parent = path.parent
        if parent not in listings:
            entries = os.scandir(parent) if parent.is_dir() else ()
            listings[parent] = frozenset(entry.name for entry in entries if not entry.is_dir())
        return path.name in listings[parent]

    subfolders = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    for image in images.values():
        candidates = [folder / image.name, *([folder / image.folder / image.name] if image.folder else [])]
        image.path = next((path for path in candidates if exists(path)), None)
        if image.path is not None:
            continue
        matches = [path for subfolder in subfolders if exists(path := subfolder / image.name)]
        if len(matches) == 1:
            image.path = matches[0]
            continue
        image.is_dropped = True
        if matches:
            report.add("images in several folders", f"{image.name}: {', '.join(path.parent.name for path in matches)}")
        else:
            report.add("missing images", image.name)


def _assign_splits(images: dict[str | int, _Image], spec: DataSpec, root: Path, report: Report) -> None:
    files = {split: name for split, name in dataclasses.asdict(spec.split_files).items() if name}
    fractions = {split: fraction for split, fraction in dataclasses.asdict(spec.split_fractions).items() if fraction}
    if files:
        source = "config.data.split_files"
        _split_by_files(images, {split: root / name for split, name in files.items()}, report)
    elif spec.split_field or any(image.split for image in images.values()):
        source = f"the field {spec.split_field or 'split'!r} of the caption files"
        unassigned = [image for image in images.values() if not image.split]
        report.extend("images without a split", (image.name for image in unassigned))
        for image in unassigned:
            image.is_dropped = True
    elif any(image.hint for image in images.values()):
        source = "the names of the caption files"
        for image in images.values():
            image.split = image.hint or "train"
    else:
        source = ""
        _split_by_fractions([image for image in images.values() if not image.is_dropped], fractions)
    if source and fractions:
        raise DataError(
            f"the splits are defined by both {source} and config.data.split_fractions; set the fractions to 0 or "
            "remove the former"
        )


def _split_by_files(images: dict[str | int, _Image], files: dict[str, Path], report: Report) -> None:
    by_name = {image.name: image for image in images.values()}
    for image in images.values():
        image.split = ""
    for split, path in files.items():
        try:
            names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except FileNotFoundError:
            raise DataError(f"no such file: {path} (config.data.split_files.{split})") from None
        for name in names:
            image = by_name.get(name)
            if image is None:
                report.add("images in a split file without captions", f"{name} ({path.name})")
            elif image.split and image.split != split:
                report.add("images in two splits", f"{name}: {image.split} and {split}")
                image.is_dropped = True
            else:
                image.split = split
    unassigned = sum(not image.split for image in images.values())
    if unassigned:
        log.info("%d images with captions are not in any split file and are not used.", unassigned)


def _split_by_fractions(images: list[_Image], fractions: dict[str, float]) -> None:
    """Assigns splits by a hash of the image id, which does not depend on the machine or the order of images."""
    shuffled = sorted(images, key=lambda image: hashlib.blake2b(repr(image.image_id).encode()).digest())
    for image in shuffled:
        image.split = "train"
    start = 0
    for split, fraction in sorted(fractions.items()):
        count = max(1, round(fraction * len(shuffled)))
        for image in shuffled[start : start + count]:
            image.split = split
        start += count


def _make_splits(images: dict[str | int, _Image]) -> dict[str, Split]:
    usable: Iterable[_Image] = (image for image in images.values() if image.split and not image.is_dropped)
    records: dict[str, list[Record]] = {}
    for image in usable:
        records.setdefault(image.split, []).append(Record(image.path, tuple(image.captions), image.image_id))
    return {split: Split(split, records[split]) for split in SPLITS if split in records}
