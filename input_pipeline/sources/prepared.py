"""The `prepared` source: images of one size in array_record shards, which the mode `prepare` wrote."""

from __future__ import annotations

import os
from pathlib import Path

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.files import local_path
from input_pipeline.prepared.card import SPLIT_KEYS, Card, describe_preprocessing, describe_source, read_card
from input_pipeline.prepared.shards import PreparedImage, ShardIndex, read_index, shard_path
from input_pipeline.records import Record, Report, Split


def open_prepared(spec: DataSpec) -> dict[str, Split]:
    """Opens a prepared dataset. Captions and ids are read into memory, and images on access, from any thread.

    Raises:
        MissingFileError: the folder has no card.
        ConfigError: the images have another size or resize than the config, or the splits other rules.
        DataError: a shard is missing or damaged, and `on_error` is "stop".
    """
    folder = local_path(spec.root or ".", "config.data.root")
    card = read_card(folder)
    _check_preprocessing(card, spec, folder)
    _check_split_rules(card, spec, folder)
    report = Report(spec.report_subject(str(folder)))
    splits = {}
    for split, entry in card.splits.items():
        records: list[Record] = []
        for name in entry["shards"]:
            try:
                records += _make_records(folder, name, card)
            except DataError as error:
                report.add("unusable shards", str(error))
        if records:
            splits[split] = Split(split, records)
    report.finish(spec.on_error, "Restore the shards, or use the others with --config.data.on_error=skip.")
    return splits


def _make_records(folder: Path, name: str, card: Card) -> list[Record]:
    index, path = read_index(folder, name), shard_path(folder, name)
    _check_size(path, index)
    size, image_format = card.settings["preprocessing"]["image_size"], card.settings["image_format"]
    return [
        Record(
            PreparedImage(os.fspath(path), row, size, image_format),
            tuple(captions),
            image_id,
            f"{path.name}[{row}] ({image_name})",
        )
        for row, (image_id, image_name, captions) in enumerate(index.images)
    ]


def _check_size(path: Path, index: ShardIndex) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if size != index.bytes:
        raise DataError(f"{path} has {size:,} bytes instead of {index.bytes:,}")


def _check_preprocessing(card: Card, spec: DataSpec, folder: Path) -> None:
    """Raises ConfigError if the images were resized in another way than the config says."""
    stored, wanted = card.settings["preprocessing"], describe_preprocessing(spec)
    for key, value in wanted.items():
        if stored[key] == value:
            continue
        if key == "pixel_version":
            raise ConfigError(f"{folder} was prepared by another version of image preprocessing: prepare it again")
        raise ConfigError(
            f"config.data.{key} is {value!r}, but the images in {folder} were prepared with {stored[key]!r}: set "
            f"config.data.{key} to it, or prepare another folder"
        )


def _check_split_rules(card: Card, spec: DataSpec, folder: Path) -> None:
    """Raises ConfigError if the config defines the splits in another way than the config of the preparation.

    Ignoring these keys could train on images that are meant for the test.
    """
    wanted = describe_source(spec)
    for key in SPLIT_KEYS:
        if key in wanted and wanted[key] != card.source.get(key):
            raise ConfigError(
                f"config.data.{key} differs from the config with which {folder} was prepared, which has defined the "
                "splits: remove the key, or prepare another folder"
            )
