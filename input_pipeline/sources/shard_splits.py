"""Samples of a `webdataset` or `parquet` dataset, and the splits that they form."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence

from input_pipeline.annotations.caption_file import CaptionFile
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.records import SPLITS, Record, Report, Split
from input_pipeline.sources.folder_splits import split_by_fractions
from input_pipeline.sources.shard_names import Shard

SHARD_AND_KEY = "__url__"  # value of config.data.id_column

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Sample:
    """An image in a shard, with its captions.

    Attributes:
        image: returns the encoded image; raises OSError.
        captions: at least one, without blanks around them.
        image_id: id of the image.
        name: name of the image in messages.
        split: split of the image; "" if it is not assigned yet.
    """

    image: Callable[[], bytes]
    captions: tuple[str, ...]
    image_id: str | int
    name: str
    split: str


def check_keys(spec: DataSpec) -> None:
    """Raises ConfigError if the splits are defined by keys that apply only to folders.

    Ignoring these keys could train on images that are meant for the test.
    """
    if any(dataclasses.asdict(spec.split_files).values()) or spec.split_field:
        key = "split_field" if spec.split_field else "split_files"
        raise ConfigError(
            f"config.data.{key} applies to the folder source only, but config.data.source is {spec.source!r}: set it "
            'to "", and config.data.shards to the shards of each split'
        )


def clean_captions(
    image_id: str | int, captions: Iterable[str], name: str, file: CaptionFile, add: Callable[[str, str], None]
) -> tuple[str, ...]:
    """Returns the captions of a sample that are not empty; () if the sample cannot be used.

    Args:
        image_id: id of the sample.
        captions: captions as they are stored.
        name: name of the sample in messages.
        file: checks texts against `config.limits`.
        add: receives the kind and the description of each problem.
    """
    captions = list(captions)
    kept = tuple(caption.strip() for caption in captions if caption.strip())
    fault = file.find_fault(image_id, kept)
    most = file.limits.captions_per_image
    if fault:
        add("malformed samples", f"{name}: {fault}")
    elif len(kept) > most:
        add(f"images with more than {most:,} captions (config.limits.captions_per_image)", f"{name} ({len(kept):,})")
    elif not kept:
        add("images without captions", name)
    else:
        if len(kept) < len(captions):
            add("empty captions", f"{name} ({len(captions) - len(kept)} of {len(captions)})")
        return kept
    return ()


def make_shard_splits(
    samples: Sequence[Sample], shards: Sequence[Shard], spec: DataSpec, report: Report
) -> dict[str, Split]:
    """Returns the splits that have usable images, after reporting all problems.

    Raises:
        DataError: there are problems and `on_error` is "stop", a split is empty, or the splits are defined in two ways.
    """
    samples = _drop_repeated(samples, report)
    named = dict.fromkeys(shard.split for shard in shards if shard.split)
    fractions = {split: fraction for split, fraction in dataclasses.asdict(spec.split_fractions).items() if fraction}
    if fractions and set(named) - {"train"}:
        raise DataError(
            "the splits are defined by both the shards and config.data.split_fractions; set the fractions to 0, or "
            "config.data.shards.train alone"
        )
    if fractions or not named:
        split_by_fractions(samples, fractions)
        named = dict.fromkeys(("train", *fractions))
    report.finish(
        spec.on_error,
        "Fix the shards, or skip these entries with --config.data.on_error=skip. Ids that repeat in other shards "
        f"become unique with --config.data.id_column={SHARD_AND_KEY}.",
    )
    records: dict[str, list[Record]] = {}
    for sample in samples:
        record = Record(sample.image, sample.captions, sample.image_id, sample.name)
        records.setdefault(sample.split, []).append(record)
    for split in named:
        if split not in records:
            counts = ", ".join(f"{name} ({len(records[name])})" for name in SPLITS if name in records) or "none"
            raise DataError(
                f"{report.subject}: no usable image with a caption for the split {split!r} in {len(shards)} shards; "
                f"splits with images: {counts}. Change config.data.shards or config.data.split_fractions"
            )
    return {split: Split(split, records[split]) for split in SPLITS if split in records}


def _drop_repeated(samples: Sequence[Sample], report: Report) -> list[Sample]:
    """Drops samples whose id occurred before, and all samples with an id that occurs in two splits."""
    first: dict[str | int, Sample] = {}
    dropped: set[str | int] = set()
    for sample in samples:
        other = first.setdefault(sample.image_id, sample)
        if other is sample:
            continue
        if other.split != sample.split:
            report.add(
                "ids in two splits",
                f"{sample.image_id}: {other.name} ({other.split}) and {sample.name} ({sample.split})",
            )
            dropped.add(sample.image_id)
        else:
            report.add("duplicate ids", f"{sample.image_id}: {other.name} and {sample.name}")
    return [sample for image_id, sample in first.items() if image_id not in dropped]
