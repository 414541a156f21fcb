"""Stored indices of tar files: what is known of a shard after it was read once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from input_pipeline.files import write_atomically
from input_pipeline.sources.shard_images import ShardState

_VERSION = 1
_SAMPLE_FIELDS = 6


@dataclasses.dataclass
class ShardIndex:
    """The samples of a shard.

    Attributes:
        state: the shard when it was indexed.
        samples: name of the image, id of the sample, whether the id is unique only within the shard, offset and size of
            the image in bytes, and captions.
        problems: kind and description of each problem.
        other_images: number of samples with several images.
        dotted_names: images with several dots in their names, which belong to no sample.
    """

    state: ShardState
    samples: list[list[Any]]
    problems: list[list[str]]
    other_images: int = 0
    dotted_names: list[str] = dataclasses.field(default_factory=list)


def write_index(path: Path, index: ShardIndex, stamp: list[Any]) -> None:
    """Writes an index atomically, with values that change with the shard and the settings. Raises OSError."""
    path.parent.mkdir(exist_ok=True)
    content = {
        "stamp": [_VERSION, *stamp],
        "samples": index.samples,
        "problems": index.problems,
        "other_images": index.other_images,
        "dotted_names": index.dotted_names,
    }
    write_atomically(path, json.dumps(content))


def read_index(path: Path, state: ShardState, stamp: list[Any]) -> ShardIndex | None:
    """Returns a stored index; None if there is none, or if it was made from another file or with other settings."""
    try:
        stored = json.loads(path.read_text())
        if stored["stamp"] != [_VERSION, *stamp]:
            return None
        if not all(len(sample) == _SAMPLE_FIELDS for sample in stored["samples"]):
            return None
        return ShardIndex(state, *(stored[name] for name in ("samples", "problems", "other_images", "dotted_names")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
