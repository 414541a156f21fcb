"""The `folder` source: an image folder, captions in any accepted format, and splits by file, field or fraction."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from input_pipeline.annotations import Row, read_rows
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.files import absolute_path
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Report, Split
from input_pipeline.safe_open import DataRoot
from input_pipeline.sources.caption_files import find_captions, find_split, is_text_files, read_text_files
from input_pipeline.sources.data_folder import find_root
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


def open_folder(spec: DataSpec, limits: Limits = DEFAULT_LIMITS) -> dict[str, Split]:
    """Opens images and captions in a folder or bucket, and reports problems with them.

    Paths with `..` that leave `root` are problems. Links and absolute paths that lead outside of `root` are followed,
    and one line of the log counts them, unless `spec.outside_files` is "refuse".

    The split of an image is determined by the first of the following that applies: `split_files`, a split field in the
    caption files, the name of the caption file (`captions_val2017.json`, or `val=any.json` in `config.data.captions`),
    or `split_fractions`. If none applies, all images are training images. Images are not decoded here, so unreadable
    ones are detected only when a batch is loaded.

    Raises:
        DataError: a file is missing or has an unknown format, a split that is defined has no usable images, or there
            are problems and `on_error` is "stop".
    """
    root = find_root(spec, "images and captions")
    spec = _find_folders(spec, root)
    report = Report(spec.report_subject(str(root)))
    folder = root / spec.images
    data_root = DataRoot(root, _list_named_folders(spec, root), spec.outside_files)
    images, hints = _read_captions(spec, data_root, report, limits)
    find_files(images, folder, data_root, report)
    if data_root.has_outside_files:
        log.info("%s; to refuse them, set config.data.outside_files='refuse'", data_root)
    images = merge_files(images, report)
    _check_captions(images, report, limits)
    report_missing(images, folder, report)
    make_ids_unique(images, folder)
    named = assign_splits(images, hints, spec, root, report, limits)
    report.finish(
        spec.on_error,
        "Fix the files, or skip these entries with --config.data.on_error=skip. Images are searched for in "
        f"{folder} (config.data.images) and its subfolders.",
    )
    splits = make_splits(images, named, root, limits)
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


def _list_named_folders(spec: DataSpec, root: Path) -> list[Path]:
    """Returns the folders outside of `root` that the config names: of images, and of caption files."""
    default = DataSpec()
    names = [spec.images] if spec.images != default.images else []
    names += [os.path.dirname(_parse_entry(entry, is_only_file=True)[1]) for entry in spec.captions]
    return [root / name for name in names if os.path.isabs(name) or ".." in Path(name).parts]


def _read_captions(
    spec: DataSpec, data_root: DataRoot, report: Report, limits: Limits
) -> tuple[list[FolderImage], dict[str, str]]:
    """Reads all entries of `config.data.captions`; also returns those that specify a split, by split."""
    root = data_root.folder
    has_split_files = any(dataclasses.asdict(spec.split_files).values())  # they override all other sources of splits
    images: list[FolderImage] = []
    hints: dict[str, str] = {}
    for entry in spec.captions:
        split, name = _parse_entry(entry, is_only_file=len(spec.captions) == 1)
        if is_text_files(name):
            source = root / spec.images / name
            ignored = _list_split_files(spec, root)
            rows = read_text_files(source.parent, root / spec.images, ignored, data_root, report, limits)
        else:
            source = root / name
            if not data_root.admits(name, source):
                raise DataError(
                    f"{source} is a link that leaves {root}, which config.data.outside_files='refuse' forbids"
                )
            rows = _read_caption_file(source, spec, report, limits)
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


def _read_caption_file(path: Path, spec: DataSpec, report: Report, limits: Limits) -> Iterable[Row]:
    if path.is_dir():
        raise DataError(f"{path} is a folder; config.data.captions must list caption files")
    try:
        return read_rows(
            path,
            report.add,
            split_field=spec.split_field,
            image_column=spec.image_column,
            caption_column=spec.caption_column,
            limits=limits,
        )
    except MissingFileError:
        raise DataError(f"no such file: {path}; set config.data.root and config.data.captions") from None


def _list_split_files(spec: DataSpec, root: Path) -> set[Path]:
    return {absolute_path(root / name) for name in dataclasses.asdict(spec.split_files).values() if name}


def _check_captions(images: list[FolderImage], report: Report, limits: Limits) -> None:
    duplicates = 0
    for image in images:
        captions = [caption.strip() for caption in image.captions if caption.strip()]
        empty = len(image.captions) - len(captions)
        if empty:
            report.add("empty captions", f"{image.name} ({empty} of {len(image.captions)})")
        elif not captions:
            report.add("images without captions", image.name)
        if len(captions) > limits.captions_per_image:
            report.add(
                f"images with more than {limits.captions_per_image:,} captions (config.limits.captions_per_image)",
                f"{image.name} ({len(captions):,})",
            )
            captions = []
        image.is_dropped |= not captions
        duplicates += len(captions) - len(set(captions))
        image.captions = captions
    if duplicates:  # annotators sometimes write the same sentence twice; metrics and training use both
        log.info("%d captions are identical to another caption of the same image; they are kept.", duplicates)
