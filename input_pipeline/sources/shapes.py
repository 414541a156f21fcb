"""The `shapes` source: scenes rendered on first use, nothing downloaded."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from input_pipeline.data_spec import DataSpec
from input_pipeline.records import SPLITS, Record, Split, check_splits

log = logging.getLogger(__name__)


def open_shapes(spec: DataSpec) -> dict[str, Split]:
    """Opens the shapes data set, and makes it first where `tfds_dir` has none (about ten seconds).

    Args:
        spec: `config.data`; `shapes` names the size ("full" or "tiny") and `tfds_dir` where it lives.

    Returns:
        The splits "train", "val" and "test", with int image ids that are unique over all three.
    """
    import tensorflow_datasets as tfds  # imported late: a second that only this source should cost

    tfds.disable_progress_bar()
    builder = _prepared_builder(spec.shapes, spec.tfds_dir or None)
    keep_encoded = {"image": tfds.decode.SkipDecoding()}
    return check_splits(
        {
            name: Split(name, [_record(example) for example in builder.as_data_source(name, decoders=keep_encoded)])
            for name in SPLITS
        }
    )


def _record(example: Mapping[str, Any]) -> Record:
    encoded: bytes = example["image"]  # the whole data set is 10 MB like this, so it stays in memory
    return Record(
        image=lambda: encoded,
        captions=tuple(text.decode("utf-8") for text in example["captions"]["text"]),
        image_id=int(example["image/id"]),
        name=f"scene {int(example['image/id'])}",
    )


def _prepared_builder(size: str, tfds_dir: str | None) -> Any:
    from input_pipeline.sources.shapes_dataset.builder import CaptionShapes

    make = functools.partial(CaptionShapes, config=size, file_format="array_record")
    builder = make(data_dir=tfds_dir)
    if not builder.data_path.exists():
        log.info("Making the shapes data set in %s (about ten seconds)", builder.data_path)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS would speak of a download here
            if "://" in os.fspath(builder.data_path):
                builder.download_and_prepare()  # object stores cannot rename a folder at once; TFDS does what it can
            else:
                _prepare_aside(make, Path(builder.data_path))
        builder = make(data_dir=tfds_dir)
    return builder


def _prepare_aside(make: functools.partial, target: Path) -> None:
    """Makes the data set in a folder of its own and moves it to `target` in one step.

    Several processes may do so at once: each makes the same files, one rename wins, the others throw theirs away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        builder = make(data_dir=os.fspath(aside))
        builder.download_and_prepare()
        try:
            os.rename(builder.data_path, target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
