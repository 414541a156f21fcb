"""Your own images: a folder of them, caption files of any accepted form, and splits by file, field or fraction."""

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
    """Opens images and captions on disk, and says what is wrong with them.

    The split of an image comes from the first of these that is there: `split_files`, a split field in the caption
    files, the name of its caption file (`captions_val2017.json`, or `val=any.json` in `config.data.captions`),
    `split_fractions`; without any of them all images are for training. Images are not decoded here: an unreadable one
    is found when it is read.

    Raises:
        DataError: a file is missing or in no known form; or there are problems and `on_error` is "stop".
    """
    root = Path(spec.root or ".")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Set config.data.root to the folder that holds images and captions.")
    report = Report(str(root))
    images: dict[str | int, _Image] = {}
    by_file = any(dataclasses.asdict(spec.split_files).values())  # which overrule all else
    for entry in spec.captions:
        split, path = _caption_file(entry, several=len(spec.captions) > 1)
        for row in _rows(root / path, spec.split_field, report):
            if by_file:
                row, split = dataclasses.replace(row, split=""), ""
            _merge(images, row, split, report)
    _check_captions(images, report)
    _find_files(images, root / spec.images, report)
    _assign_splits(images, spec, root, report)
    report.finish(
        spec.on_error,
        "Mend the files, or leave these out with --config.data.on_error=skip. Paths of images are looked up in "
        f"{root / spec.images} (config.data.images) and its subfolders.",
    )
    splits = _to_splits(images)
    if not splits:
        raise DataError(f"{root}: no usable image with a caption was found in {', '.join(spec.captions)}")
    return splits


class _Image:
    """All that the caption files say about one image."""

    __slots__ = ("captions", "dropped", "folder", "hint", "image_id", "name", "path", "split")

    def __init__(self, row: Row):
        self.name = row.image
        self.image_id = row.image_id
        self.folder = row.folder
        self.captions: list[str] = []
        self.split = ""  # what a split file or field says
        self.hint = ""  # what the name of its caption file says
        self.path: Path | None = None
        self.dropped = False


def _caption_file(entry: str, several: bool) -> tuple[str, str]:
    """Returns the split that an entry of config.data.captions speaks of ("" for none) and its path."""
    name, found, path = entry.partition("=")
    if found and name in SPLIT_NAMES:
        return SPLIT_NAMES[name], path
    if not several:  # one file called train.json is not a statement about a validation split
        return "", entry
    words = re.split(r"[^a-z]+", Path(entry).stem.lower())
    named = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return (named.pop() if len(named) == 1 else ""), entry


def _rows(path: Path, split_field: str, report: Report) -> Iterator[Row]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; config.data.captions names caption files.")
    try:
        return read_rows(path, report.add, split_field=split_field)
    except MissingFileError:
        raise DataError(f"{path}: no such file. Set config.data.root and config.data.captions.") from None


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
        image.dropped = True
    if row.split:
        split = SPLIT_NAMES.get(row.split.lower())
        if split is None:
            report.add("unknown split names", f"{row.split!r} of {row.image} (want {', '.join(SPLIT_NAMES)})")
            image.dropped = True
        elif image.split and image.split != split:
            report.add("images in two splits", f"{image.name}: {image.split} and {split}")
            image.dropped = True
        else:
            image.split = split
    image.captions += row.captions


def _check_captions(images: dict[str | int, _Image], report: Report) -> None:
    homes: dict[tuple[str, str], _Image] = {}
    repeated = 0
    for image in images.values():
        kept = [caption.strip() for caption in image.captions if caption.strip()]
        if len(kept) < len(image.captions):
            report.add("empty captions", f"{image.name} ({len(image.captions) - len(kept)} of {len(image.captions)})")
        elif not kept:
            report.add("images without captions", image.name)
        image.dropped |= not kept
        repeated += len(kept) - len(set(kept))
        image.captions = kept
        other = homes.setdefault((image.folder, image.name), image)
        if other is not image:
            report.add("images listed twice", f"{image.name}: ids {other.image_id} and {image.image_id}")
            image.dropped = True
    if repeated:  # people do write the same sentence twice; metrics and training take it as it is
        log.info("%d captions repeat another caption of the same image word for word; they are kept.", repeated)


def _find_files(images: dict[str | int, _Image], folder: Path, report: Report) -> None:
    """Finds each image's file by listing folders once, which network disks bear better than a look at each file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Set config.data.images to the folder of images.")
    listings: dict[Path, frozenset[str]] = {}

    def is_there(path: Path) -> bool:
        parent = path.parent
        if parent not in listings:
            entries = os.scandir(parent) if parent.is_dir() else ()
            listings[parent] = frozenset(entry.name for entry in entries if not entry.is_dir())
        return path.name in listings[parent]

    subfolders = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    for image in images.values():
        direct = [folder / image.name, *([folder / image.folder / image.name] if image.folder else [])]
        image.path = next((path for path in direct if is_there(path)), None)
        if image.path is not None:
            continue
        found = [sub / image.name for sub in subfolders if is_there(sub / image.name)]
        if len(found) == 1:
            image.path = found[0]
            continue
        image.dropped = True
        if found:
            report.add("images in several folders", f"{image.name}: {', '.join(path.parent.name for path in found)}")
        else:
            report.add("missing images", image.name)


def _assign_splits(images: dict[str | int, _Image], spec: DataSpec, root: Path, report: Report) -> None:
    files = {split: name for split, name in dataclasses.asdict(spec.split_files).items() if name}
    fractions = {split: share for split, share in dataclasses.asdict(spec.split_fractions).items() if share}
    if files:
        source = "config.data.split_files"
        _split_by_files(images, {split: root / name for split, name in files.items()}, report)
    elif spec.split_field or any(image.split for image in images.values()):
        source = f"the field {spec.split_field or 'split'!r} of the caption files"
        unsaid = [image for image in images.values() if not image.split]
        report.extend("images without a split", (image.name for image in unsaid))
        for image in unsaid:
            image.dropped = True
    elif any(image.hint for image in images.values()):
        source = "the names of the caption files"
        for image in images.values():
            image.split = image.hint or "train"
    else:
        source = ""
        _split_by_fractions([image for image in images.values() if not image.dropped], fractions)
    if source and fractions:
        raise DataError(f"splits come from {source}: set config.data.split_fractions to 0, or take the former away")


def _split_by_files(images: dict[str | int, _Image], files: dict[str, Path], report: Report) -> None:
    by_name = {image.name: image for image in images.values()}
    for image in images.values():
        image.split = ""
    for split, path in files.items():
        try:
            names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        except FileNotFoundError:
            raise DataError(f"{path}: no such file (config.data.split_files.{split})") from None
        for name in names:
            image = by_name.get(name)
            if image is None:
                report.add("images of a split file without captions", f"{name} ({path.name})")
            elif image.split and image.split != split:
                report.add("images in two splits", f"{name}: {image.split} and {split}")
                image.dropped = True
            else:
                image.split = split
    left_out = sum(not image.split for image in images.values())
    if left_out:
        log.info("%d images with captions are in no split file; they are not used.", left_out)


def _split_by_fractions(images: list[_Image], fractions: dict[str, float]) -> None:
    """Deals images out by a hash of their id, so that the split depends neither on order nor on the machine."""
    dealt = sorted(images, key=lambda image: hashlib.blake2b(repr(image.image_id).encode()).digest())
    for image in dealt:
        image.split = "train"
    start = 0
    for split, share in sorted(fractions.items()):
        count = max(1, round(share * len(dealt)))
        for image in dealt[start : start + count]:
            image.split = split
        start += count


def _to_splits(images: dict[str | int, _Image]) -> dict[str, Split]:
    usable: Iterable[_Image] = (image for image in images.values() if image.split and not image.dropped)
    records: dict[str, list[Record]] = {}
    for image in usable:
        records.setdefault(image.split, []).append(Record(image.path, tuple(image.captions), image.image_id))
    return {split: Split(split, records[split]) for split in SPLITS if split in records}
