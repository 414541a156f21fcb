"""The `shapes` source: synthetic scenes, which are rendered on first use without any download."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.data_spec import DataSpec
from input_pipeline.extras import optional_packages, select_bucket_backend
from input_pipeline.files import is_on_bucket
from input_pipeline.records import SPLITS, Record, Split, check_splits
from input_pipeline.tensorflow_devices import keep_tensorflow_off_accelerators

_PURPOSE = "the shapes dataset"
_STALE_SECONDS = 3600.0

log = logging.getLogger(__name__)


def open_shapes(spec: DataSpec) -> dict[str, Split]:
    """Opens the shapes dataset, after generating it (about ten seconds) if it is not in `tfds_dir`.

    Args:
        spec: `config.data`, where `shapes` selects the size ("full" or "tiny") and `tfds_dir` the directory.

    Returns:
        The splits "train", "val" and "test", with integer image ids that are unique across all three.

    Raises:
        MissingPackageError: the `train` extra is not installed.
    """
    select_bucket_backend(spec.tfds_dir)
    with optional_packages(_PURPOSE):
        import tensorflow_datasets as tfds  # imported lazily, because it takes a second

    tfds.disable_progress_bar()
    builder = _prepare_builder(spec.shapes, spec.tfds_dir or None)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return check_splits(
        {
            name: Split(name, [_make_record(example) for example in builder.as_data_source(name, decoders=decoders)])
            for name in SPLITS
        }
    )


def _make_record(example: Mapping[str, Any]) -> Record:
    encoded: bytes = example["image"]  # held in memory; the whole dataset takes 10 MB
    return Record(
        image=functools.partial(bytes, encoded),  # can be pickled, for worker processes
        captions=tuple(text.decode("utf-8") for text in example["captions"]["text"]),
        image_id=int(example["image/id"]),
        name=f"scene {int(example['image/id'])}",
    )


def _prepare_builder(size: str, tfds_dir: str | None) -> Any:
    from input_pipeline.sources.shapes_dataset.builder import CaptionShapes

    make_builder = functools.partial(CaptionShapes, config=size, file_format="array_record")
    builder = make_builder(data_dir=tfds_dir)
    if not builder.data_path.exists():
        log.info("Generating the shapes dataset in %s (about ten seconds)", builder.data_path)
        keep_tensorflow_off_accelerators(_PURPOSE)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints a misleading message about a download
            if is_on_bucket(builder.data_path):
                builder.download_and_prepare()  # object stores cannot rename a folder atomically
            else:
                _prepare_atomically(make_builder, Path(builder.data_path))
        builder = make_builder(data_dir=tfds_dir)
    return builder


def _prepare_atomically(make_builder: functools.partial, target: Path) -> None:
    """Generates the dataset in a temporary folder and renames it to `target`.

    Safe with concurrent processes, because all of them generate the same files. One rename succeeds, and the other
    processes discard their copies.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in target.parent.glob(".incomplete-*"):
        with contextlib.suppress(OSError):  # its process has just deleted it
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:  # its process was killed
                shutil.rmtree(folder, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=target.parent))
    try:
        builder = make_builder(data_dir=os.fspath(temporary))
        builder.download_and_prepare()
        try:
            os.rename(builder.data_path, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
