"""The captions of a folder: caption files with a standard name, or text files next to the images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.annotations import Row, iterate_lines, read_text
from input_pipeline.annotations.caption_file import CaptionFile
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.files import absolute_path, is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES, find_folder_images
from input_pipeline.limits import Limits
from input_pipeline.records import Report
from input_pipeline.safe_open import DataRoot
from input_pipeline.sources.folder_listing import list_files
from input_pipeline.sources.split_names import SPLIT_NAMES
from input_pipeline.terminal_text import escape

# Default names in order of precedence: this project's, then those of Flickr8k, Hugging Face's image folders, Flickr30k,
# Karpathy's splits and COCO.
DEFAULT_NAMES = (
    "captions.csv",
    "captions.tsv",
    "captions.jsonl",
    "captions.json",
    "token.txt",
    "Flickr8k.token.txt",
    "captions.txt",
    "metadata.csv",
    "metadata.jsonl",
    "results.csv",
    "dataset*.json",
    "captions*.json",
    "annotations/captions*.json",
)
TEXT_FILES = "*.txt"  # entry of `config.data.captions`: the captions of a.jpg are the lines of a.txt


def find_captions(root: Path, images: Path) -> tuple[str, ...]:
    """Returns the captions of a folder, in the form of `config.data.captions`.

    These are the files that match the first pattern in `DEFAULT_NAMES` for which there are any, or the text files
    next to the images.

    Args:
        root: the folder.
        images: its image folder.

    Raises:
        MissingFileError: the folder does not exist, or contains neither.
        DataError: several files match, and their names do not say that they are different splits.
    """
    if not root.is_dir():
        raise MissingFileError(f"no such folder: {root}")
    for pattern in DEFAULT_NAMES:
        files = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern) if path.is_file())
        if len(files) > 1 and len(set(map(find_split, files)) - {""}) < len(files):
            names = ", ".join(map(escape, files))
            raise DataError(f"several caption files in {root}: {names}; list those to use in config.data.captions")
        if files:
            return tuple(files)
    if _has_text_files(images):
        return (TEXT_FILES,)
    raise MissingFileError(
        f"no caption file in {root}; expected one of {', '.join(DEFAULT_NAMES)}, or a text file for each image "
        f"(a.txt for a.jpg). Set config.data.root to the folder of the data, or {_suggest_files(root)}"
    )


_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")


def _suggest_files(root: Path) -> str:
    """Suggests the files in a folder that may contain captions, for an error message."""
    names = sorted(escape(path.name) for path in root.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not names:
        return "config.data.captions to a file with another name"
    others = f" (or {', '.join(names[1:4])})" if len(names) > 1 else ""
    return f"use a file with another name: config.data.captions={names[0]}{others}"


def find_split(path: str) -> str:
    """Returns the split that the name of a caption file specifies, such as "val" for captions_val2017.json, or ""."""
    words = re.split(r"[^a-z]+", Path(path).stem.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else ""


def is_text_files(entry: str) -> bool:
    """Whether an entry of `config.data.captions` stands for the text files next to the images."""
    return os.path.basename(entry) == TEXT_FILES


def _has_text_files(folder: Path) -> bool:
    return not _find_texts(folder).keys().isdisjoint(os.path.splitext(path)[0] for path in _find_images(folder))


def _find_images(folder: Path) -> list[str]:
    if is_on_bucket(folder):  # a file without a usual suffix would have to be read
        return sorted(name for name in list_files(folder) if name.lower().endswith(NAME_SUFFIXES))
    return sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in find_folder_images(str(folder)))


def _find_texts(folder: Path) -> dict[str, Path]:
    """Returns the text files in a folder and its subfolders by their relative paths without the extension."""
    return {os.path.splitext(path)[0]: folder / path for path in list_files(folder) if path.lower().endswith(".txt")}


def read_text_files(
    folder: Path, images: Path, ignored: set[Path], data_root: DataRoot, report: Report, limits: Limits
) -> Iterator[Row]:
    """Yields the images in a folder and its subfolders, with the lines of the text files next to them as captions.

    Args:
        folder: the folder.
        images: the image folder of the dataset, to which image names are relative.
        ignored: resolved paths of text files that are not captions.
        data_root: folder of the dataset.
        report: receives images without a text file, text files without an image, and captions that cannot be used.
        limits: `config.limits`.
    """
    texts = _find_texts(folder)
    used: dict[str, str] = {}
    for path in _find_images(folder):
        stem = os.path.splitext(path)[0]
        if stem not in texts:
            report.add("images without a text file", f"{path} (expected {stem}.txt)")
        elif stem in used:
            report.add("two images with one text file", f"{texts[stem].name}: {used[stem]} and {path}")
        else:
            used[stem] = path
            captions = _read_lines(texts[stem], data_root, report, limits)
            if captions is None:
                continue
            if captions and not any(map(str.isalpha, "".join(captions))):  # labels of an object detector, for example
                report.add("text files without words", texts[stem].name)
                continue
            name = os.path.relpath(folder / path, images).replace(os.sep, "/")
            yield Row(name, captions or [""], "", name)
    for stem, path in texts.items():
        if stem not in used and absolute_path(path) not in ignored:
            report.add("text files without an image", str(path.relative_to(folder)))


def _read_lines(path: Path, data_root: DataRoot, report: Report, limits: Limits) -> list[str] | None:
    """Returns the lines of a text file; None, and reports the reason, if they cannot be used."""
    if not data_root.admits(path.name, path):
        report.add("text files outside of the folder", path.name)
        return None
    file = CaptionFile(path, report.add, limits=limits)
    try:
        lines = [(number, line.strip()) for number, line in iterate_lines(read_text(path, limits.caption_file_bytes))]
    except DataError as error:
        report.add("unreadable text files", str(error))
        return None
    return [line for number, line in lines if file.accepts(f"line {number}", "", [line])]
