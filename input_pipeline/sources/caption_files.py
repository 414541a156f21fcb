"""Finds the caption file of a folder by its name."""

from __future__ import annotations

from pathlib import Path

from input_pipeline.errors import MissingFileError

# Default names in order of precedence: this project's, then those of Flickr8k, Karpathy's splits and COCO.
DEFAULT_NAMES = (
    "captions.csv",
    "captions.tsv",
    "captions.jsonl",
    "captions.json",
    "token.txt",
    "Flickr8k.token.txt",
    "captions.txt",
    "dataset*.json",
    "captions*.json",
    "annotations/captions*.json",
)


def find_caption_file(folder: Path) -> Path:
    """Returns the caption file of a folder, the first match in the order of `DEFAULT_NAMES`.

    Raises:
        MissingFileError: the folder does not exist, or contains no caption file with a default name.
    """
    if not folder.is_dir():
        raise MissingFileError(f"no such folder: {folder}")
    for name in DEFAULT_NAMES:
        files = sorted(path for path in folder.glob(name) if path.is_file())
        if files:
            return files[0]
    raise MissingFileError(f"no caption file in {folder}; expected one of {', '.join(DEFAULT_NAMES)}")
