"""Converts a folder of captioned images to a TFDS dataset in array_record format.

The format consists of a few large files, which suits network file systems, object stores and TPU hosts. Datasets are
read with `config.data.source = "tfds"`.

    python -m input_pipeline.sources.prepare_tfds --config=configs/coco.py --config.data.root=COCO \
        --config.data.tfds_name=my_coco --config.data.tfds_dir=gs://bucket/tfds
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import MissingFileError
from input_pipeline.extras import optional_packages, select_bucket_backend
from input_pipeline.limits import DEFAULT_LIMITS
from input_pipeline.records import DataError, Split
from input_pipeline.safe_open import UnreadableFileError, read_file
from input_pipeline.sources import open_splits
from input_pipeline.sources.tfds import open_tfds
from input_pipeline.tensorflow_devices import keep_tensorflow_off_accelerators

_PURPOSE = "preparing a dataset"

log = logging.getLogger(__name__)


def prepare(splits: Mapping[str, Split], name: str, tfds_dir: str | os.PathLike = "") -> str:
    """Writes splits as a TFDS dataset. Images are copied byte for byte, in the order of the records.

    The features match `coco_captions`: image, image/filename, image/id (int64 if all ids are integers, otherwise text),
    captions {id, text}.

    Args:
        splits: splits returned by `open_splits`.
        name: name of the dataset (lower-case letters, digits and underscores).
        tfds_dir: directory of prepared datasets; "" for the TFDS default.

    Returns:
        The folder of the written dataset.

    Raises:
        DataError: the dataset already exists, or an image cannot be read.
        MissingPackageError: the `train` extra is not installed.
    """
    select_bucket_backend(tfds_dir)
    keep_tensorflow_off_accelerators(_PURPOSE)
    with optional_packages(_PURPOSE):
        import tensorflow_datasets as tfds

    integer_ids = all(isinstance(image_id, int) for split in splits.values() for image_id in split.image_ids)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": tfds.features.Scalar(np.int64) if integer_ids else tfds.features.Text(),
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
        }
    )
    builder = tfds.dataset_builders.AdhocBuilder(
        name=name,
        version="1.0.0",
        features=features,
        split_datasets={split: _Examples(records, integer_ids) for split, records in splits.items()},
        data_dir=os.fspath(tfds_dir) or None,
        description="Captioned images from a folder.",
        file_format="array_record",
        disable_shuffling=True,
    )
    if builder.is_prepared():
        raise DataError(f"{builder.data_path} already exists; remove it or change config.data.tfds_name")
    builder.download_and_prepare()
    open_tfds(builder)  # writes the caption index next to the data, so runs do not have to build it
    return os.fspath(builder.data_path)


class _Examples:
    """Iterable over the examples of a split; images are read during iteration."""

    def __init__(self, split: Split, integer_ids: bool):
        self._split = split
        self._integer_ids = integer_ids

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        caption_id = 0
        for key, record in enumerate(self._split):
            source = record.source()
            try:
                encoded = source if isinstance(source, bytes) else read_file(source, DEFAULT_LIMITS.image_file_bytes)
            except (MissingFileError, UnreadableFileError) as error:
                raise DataError(f"{record.name} cannot be read: {error}") from None
            captions = [{"id": caption_id + index, "text": text} for index, text in enumerate(record.captions)]
            caption_id += len(captions)
            yield (
                key,
                {
                    "image": encoded,
                    "image/filename": os.path.basename(record.name),
                    "image/id": record.image_id if self._integer_ids else str(record.image_id),
                    "captions": captions,
                },
            )


def _main(arguments: list[str]) -> None:
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(arguments[1:])}")
    logging.basicConfig(level=logging.INFO)
    spec = dataclasses.replace(DataSpec.from_config(_CONFIG.value.data), source="folder")
    splits = open_splits(spec)
    folder = prepare(splits, spec.tfds_name, spec.tfds_dir)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
    print(f"Wrote {folder}: {counts} images.")


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", help_string="A config file in the format of main.py.")
    flags.mark_flag_as_required("config")
    app.run(_main)
