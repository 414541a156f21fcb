"""The `folder` source: an image folder, captions in any accepted format, and splits by file, field or fraction."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

from input_pipeline.annotations import Row, read_rows
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.files import local_path
from input_pipeline.records import Report, Split
from input_pipeline.sources.caption_files import find_captions, find_split, is_text_files, read_text_files
from input_pipeline.sources.folder_images import (
    FolderImage,
    collect_images,
    find_files,
    make_ids_unique,
    merge_files,
    report_missing,
)
from input_pipeline.sources.folder_splits import assign_splits, make_splits
from input_pipeline.sources.split_names import SPLIT_NAMES

log = logging.getLogger(__name__)


def open_folder(spec: DataSpec) -> dict[str, Split]:
    """Opens images and captions on disk, and reports problems with them.

    The split of an image is determined by the first of the following that applies: `split_files`, a split field in the
    caption files, the name of the caption file (`captions_val2017.json`, or `val=any.json` in `config.data.captions`),
    or `split_fractions`. If none applies, all images are training images. Images are not decoded here, so unreadable
    ones are detected only when a batch is loaded.

    Raises:
        DataError: a file is missing or has an unknown format, a split that is defined has no usable images, or there
            are problems and `on_error` is "stop".
    """
    root = local_path(spec.root or ".", "config.data.root")
    if not root.is_dir():
        raise DataError(f"no such folder: {root}; set config.data.root to the folder with the images and captions")
    spec = _find_folders(spec, root)
    report = Report(str(root))
    images, hints = _read_captions(spec, root, report)
    folder = root / spec.images
    find_files(images, folder, report)
    images = merge_files(images, report)
    _check_captions(images, report)
    report_missing(images, folder, report)
    make_ids_unique(images, folder)
    named = assign_splits(images, hints, spec, root, report)
    report.finish(
        spec.on_error,
        "Fix the files, or skip these entries with --config.data.on_error=skip. Images are searched for in "
        f"{folder} (config.data.images) and its subfolders.",
    )
    splits = make_splits(images, named, root)
    if not splits:
        raise DataError(f"{root}: no usable image with a caption in {', '.join(spec.captions)}")
    return splits


def _find_folders(spec: DataSpec, root: Path) -> DataSpec:
    """Returns the spec with the image folder and the captions that exist, where the config leaves them open."""
    if not (root / spec.images).is_dir():
        if spec.images != "images":
            raise DataError(f"no such folder: {root / spec.images}; set config.data.images to the image folder")
        log.info("There is no folder %s: images are searched for in %s (config.data.images).", root / "images", root)
        spec = dataclasses.replace(spec, images="")
    if not spec.captions:
        captions = find_captions(root, root / spec.images)
        log.info("captions: %s in %s (config.data.captions)", ", ".join(captions), root)
        spec = dataclasses.replace(spec, captions=captions)
    return spec


def _read_captions(spec: DataSpec, root: Path, report: Report) -> tuple[list[FolderImage], dict[str, str]]:
    """Reads all entries of `config.data.captions`; also returns those that specify a split, by split."""
    has_split_files = any(dataclasses.asdict(spec.split_files).values())  # they override all other sources of splits
    images: list[FolderImage] = []
    hints: dict[str, str] = {}
    for entry in spec.captions:
        split, name = _parse_entry(entry, is_only_file=len(spec.captions) == 1)
        if is_text_files(name):
            source = root / spec.images / name
            rows = read_text_files(source.parent, root / spec.images, _list_split_files(spec, root), report)
        else:
            source = root / name
            rows = _read_caption_file(source, spec, report)
        if has_split_files:
            rows, split = (dataclasses.replace(row, split="") if row.split else row for row in rows), ""
        if split:
            hints[split] = name
        images += collect_images(rows, source, split, report)
    return images, hints


def _parse_entry(entry: str, is_only_file: bool) -> tuple[str, str]:
    """Returns the split ("" if unspecified) and the path of an entry of config.data.captions."""
    name, separator, path = entry.partition("=")
    if separator and name in SPLIT_NAMES:
        return SPLIT_NAMES[name], path
    return ("" if is_only_file else find_split(entry)), entry  # even a file named train.json may contain all splits


def _read_caption_file(path: Path, spec: DataSpec, report: Report) -> Iterable[Row]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; config.data.captions must list caption files")
    try:
        return read_rows(
            path,
            report.add,
            split_field=spec.split_field,
            image_column=spec.image_column,
            caption_column=spec.caption_column,
        )
    except MissingFileError:
        raise DataError(f"no such file: {path}; set config.data.root and config.data.captions") from None


def _list_split_files(spec: DataSpec, root: Path) -> set[Path]:
    return {(root / name).resolve() for name in dataclasses.asdict(spec.split_files).values() if name}


def _check_captions(images: list[FolderImage], report: Report) -> None:
    duplicates = 0
    for image in images:
        captions = [caption.strip() for caption in image.captions if caption.strip()]
        empty = len(image.captions) - len(captions)
        if empty:
            report.add("empty captions", f"{image.name} ({empty} of {len(image.captions)})")
        elif not captions:
            report.add("images without captions", image.name)
        image.is_dropped |= not captions
        duplicates += len(captions) - len(set(captions))
        image.captions = captions
    if duplicates:  # annotators sometimes write the same sentence twice; metrics and training use both
        log.info("%d captions are identical to another caption of the same image; they are kept.", duplicates)
