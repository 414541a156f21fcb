"""Which file of a folder holds its captions, where nobody says so."""

from __future__ import annotations

from pathlib import Path

from input_pipeline.errors import MissingFileError

# The usual names, the more specific first: our own, Flickr8k's, Karpathy's and COCO's.
USUAL_NAMES = (
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
    """The caption file of a folder: the first of the usual names that is there, in the order of `USUAL_NAMES`.

    Raises:
        MissingFileError: there is no such folder, or no file of a usual name in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder")
    for name in USUAL_NAMES:
        files = sorted(path for path in folder.glob(name) if path.is_file())
        if files:
            return files[0]
    raise MissingFileError(f"{folder} has no caption file of a usual name: {', '.join(USUAL_NAMES)}")
