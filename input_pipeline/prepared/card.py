"""The card of a prepared dataset, and the settings that determine its contents."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import MissingFileError
from input_pipeline.images import PIXEL_VERSION
from input_pipeline.inputs import fingerprint
from input_pipeline.prepared.shards import read_json
from input_pipeline.records import Split

CARD, SETTINGS = "card.json", "settings.json"
FORMAT = 1  # version of the files

# Keys of `config.data` that select images and captions, and among them those that define the splits.
SPLIT_KEYS = ("shards", "split_files", "split_field", "split_fractions")
_SOURCE_KEYS = (
    *("source", "shapes", "root", "images", "captions", "image_column", "caption_column", "id_column"),
    *("tfds_name", "tfds_dir", *SPLIT_KEYS),
)


@dataclasses.dataclass(frozen=True)
class Card:
    """Description of a prepared dataset, the file `card.json`.

    Attributes:
        settings: what determines the contents; see `describe_settings`.
        source: the keys of `config.data` that select the images and captions, without defaults.
        splits: numbers of `images`, `captions` and `skipped` images, and the names of the `shards`, by split.
        bytes: size of all shards.
        sha256: hash of the contents of all shards.
        skipped: `split`, `name` and `reason` of each image that could not be read.
    """

    settings: dict[str, Any]
    source: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    bytes: int
    sha256: str
    skipped: list[dict[str, str]]

    def to_json(self) -> str:
        """Returns the contents of the file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read_card(folder: Path) -> Card:
    """Reads the card of a prepared dataset.

    Raises:
        MissingFileError: there is no card.
        DataError: the card is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        raise MissingFileError(
            f"{path} is missing: `prepare --config=NAME --out={folder}` writes a dataset, or continues an interrupted "
            "preparation"
        )
    return Card(**read_json(path, {field.name for field in dataclasses.fields(Card)}))


def describe_settings(
    spec: DataSpec, splits: Mapping[str, Split], image_format: str, quality: int | None, images_per_shard: int
) -> dict[str, Any]:
    """Returns everything that determines the contents of the shards, as JSON values."""
    return {
        "format": FORMAT,
        "preprocessing": describe_preprocessing(spec),
        "image_format": image_format,
        "jpeg_quality": quality,
        "images_per_shard": images_per_shard,
        "splits": {name: {"images": len(split), "sha256": _hash(split)} for name, split in splits.items()},
    }


def describe_preprocessing(spec: DataSpec) -> dict[str, Any]:
    """Returns everything that determines the pixels of an image, as JSON values."""
    return {
        "image_size": spec.image_size,
        "resize": spec.resize,
        "interpolation": spec.interpolation,
        "pixel_version": PIXEL_VERSION,
    }


def _hash(split: Split) -> str:
    """Returns a hash of the images, ids and captions of a split."""
    captions = json.dumps([record.captions for record in split])
    return hashlib.sha256(f"{fingerprint(split)}\n{captions}".encode()).hexdigest()


def describe_source(spec: DataSpec) -> dict[str, Any]:
    """Returns the keys of `config.data` that select the images and captions, without those that have their default."""
    values, defaults = (_to_json({key: _value(data, key) for key in _SOURCE_KEYS}) for data in (spec, DataSpec()))
    return {key: value for key, value in values.items() if key == "source" or value != defaults[key]}


def _value(spec: DataSpec, key: str) -> Any:
    value = getattr(spec, key)
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _to_json(values: Any) -> Any:
    return json.loads(json.dumps(values))
