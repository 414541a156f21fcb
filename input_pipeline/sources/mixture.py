"""The `mixture` source: several datasets, from which training images are drawn in proportion to weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.data_spec import DataSpec, PartSpec, name_part
from input_pipeline.errors import ConfigError, DataError, MissingFileError, MissingPackageError
from input_pipeline.records import SPLITS, Record, Report, Split, SplitPart

log = logging.getLogger(__name__)


def open_mixture(spec: DataSpec, open_part: Callable[[PartSpec], dict[str, Split]]) -> dict[str, Split]:
    """Opens all parts of a mixture, and joins their splits.

    Image ids and names begin with the name of the part, so those of different parts differ.

    Args:
        spec: `config.data`.
        open_part: opens the dataset of a part.

    Raises:
        ConfigError: a part cannot be opened, or its weight is too small. The message names the part.
        DataError: the data of a part has problems, or an image is in different splits of two parts that share files.
    """
    parts = spec.list_parts()
    opened = [_open_part(part, open_part) for part in parts]
    _check_shared_images(opened)
    joined = {}
    for name in SPLITS:
        splits = [(part, splits[name]) for part, splits in zip(parts, opened, strict=True) if splits.get(name)]
        if splits:
            records = [record for _, split in splits for record in split]
            joined[name] = Split(name, records, _divide_epoch(splits) if name == "train" else ())
    return joined


def _open_part(part: PartSpec, open_part: Callable[[PartSpec], dict[str, Split]]) -> dict[str, Split]:
    try:
        splits = open_part(part)
    except (ConfigError, DataError, MissingFileError, MissingPackageError) as error:
        message, subject = name_part(str(error), part.part), part.report_subject("")
        # Reports of problems name the part already.
        raise type(error)(message if subject in message else f"{subject}: {message}") from error
    return {name: Split(name, [_rename(record, part.part) for record in split]) for name, split in splits.items()}


def _rename(record: Record, part: str) -> Record:
    return dataclasses.replace(record, image_id=f"{part}/{record.image_id}", name=f"{part}: {record.name}")


def _check_shared_images(parts: Sequence[Mapping[str, Split]]) -> None:
    """Raises DataError if two parts that read the same files have an image in different splits."""
    report = Report("the mixture")
    first: dict[Any, tuple[Record, str]] = {}
    for splits in parts:
        for name, split in splits.items():
            for record in split:
                other, other_name = first.setdefault(record.image, (record, name))
                if other_name != name:
                    report.add("images in two splits", f"{other.name} ({other_name}) and {record.name} ({name})")
    report.finish("stop", "An image must belong to the same split in all parts; change the splits of one of them.")


def _divide_epoch(splits: Sequence[tuple[PartSpec, Split]]) -> list[SplitPart]:
    """Returns the parts of the training split, with their numbers of images in an epoch, in proportion to the weights.

    Raises:
        ConfigError: an epoch would have no image of a part.
    """
    weights = np.array([part.weight for part, _ in splits])
    images = sum(len(split) for _, split in splits)
    # Numbers whose sum is the number of images.
    ends = np.rint(np.cumsum(weights / weights.sum()) * images).astype(int)
    parts = []
    for (part, split), count in zip(splits, np.diff(ends, prepend=0).tolist(), strict=True):
        if not count:
            raise ConfigError(
                f"config.data.mixture.{part.part}.weight={part.weight:g} is less than one of the {images:,} images of "
                "an epoch: raise it, or remove the part"
            )
        log.info(
            "part %s of the mixture: %d of the %d training images of an epoch, of %d (weight %g)",
            *(part.part, count, images, len(split), part.weight),
        )
        parts.append(SplitPart(part.part, len(split), count, part.shuffle_window))
    return parts
