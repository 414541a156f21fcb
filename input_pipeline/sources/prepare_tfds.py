"""Turns a folder of captioned images into a TFDS data set in array_record format.

A few large files suit network disks, object stores and TPU hosts; they are read with `config.data.source = "tfds"`.

    python -m input_pipeline.sources.prepare_tfds --config=configs/coco.py --config.data.root=COCO \
        --config.data.tfds_name=my_coco --config.data.tfds_dir=gs://bucket/tfds
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from input_pipeline.data_spec import DataSpec
from input_pipeline.records import DataError, Split
from input_pipeline.sources import open_splits
from input_pipeline.sources.tfds import open_tfds

log = logging.getLogger(__name__)


def prepare(splits: Mapping[str, Split], name: str, tfds_dir: str | os.PathLike = "") -> str:
    """Writes splits as a TFDS data set. Images are copied byte for byte, in the order of the records.

    Features are those of `coco_captions`: image, image/filename, image/id (an integer if all ids are, else a text),
    captions {id, text}.

    Args:
        splits: what `open_splits` returns.
        name: the data set's name: lower-case letters, digits and underscores.
        tfds_dir: the folder of prepared data sets; "" for TFDS's own default.

    Returns:
        The folder that was written.

    Raises:
        DataError: there is such a data set already, or an image file has gone.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    _leave_accelerators_alone()
    whole = all(isinstance(image_id, int) for split in splits.values() for image_id in split.image_ids)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": tfds.features.Scalar(np.int64) if whole else tfds.features.Text(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
    )
    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={split: _Examples(records, whole) for split, records in splits.items()},
        data_dir=os.fspath(tfds_dir) or None,
        description="Captioned images from a folder.",
        file_format="array_record",
        disable_shuffling=True,
    )
    if builder.is_prepared():
        raise DataError(f"{builder.data_path} is there already; remove it, or choose another config.data.tfds_name")
    builder.download_and_prepare()
    open_tfds(builder)  # collects the captions beside the data, so that no run has to
    return os.fspath(builder.data_path)


class _Examples:
    """The examples of a split, read while they are written."""

    def __init__(self, split: Split, whole: bool):
        self._split = split
        self._whole = whole

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        caption_id = 0
        for key, record in enumerate(self._split):
            source = record.source()
            try:
                encoded = source if isinstance(source, bytes) else source.read_bytes()
            except OSError as error:
                raise DataError(f"{record.name} cannot be read: {error}") from error
            captions = [{"id": caption_id + place, "text": text} for place, text in enumerate(record.captions)]
            caption_id += len(captions)
            yield (
                key,
                {
                    "image": encoded,
                    "image/filename": os.path.basename(record.name),
                    "image/id": record.image_id if self._whole else str(record.image_id),
                    "captions": captions,
                },
            )


def _leave_accelerators_alone() -> None:
    """TFDS writes with TensorFlow, which would otherwise take all the memory of a GPU."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(arguments[1:])}")
    logging.basicConfig(level=logging.INFO)
    spec = dataclasses.replace(DataSpec.of(_CONFIG.value.data), source="folder")
    splits = open_splits(spec)
    folder = prepare(splits, spec.tfds_name, spec.tfds_dir)
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print(f"Wrote {folder}: {sizes} images.")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", help_string="A config file, as for main.py.")
    flags.mark_flag_as_required("config")
    app.run(_main)
