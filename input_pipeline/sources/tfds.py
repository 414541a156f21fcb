"""TensorFlow Datasets read by random access, without TensorFlow: prepared as array_record, images kept encoded."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from input_pipeline.data_spec import DataSpec
from input_pipeline.files import write_atomically
from input_pipeline.records import SPLITS, DataError, Record, Split
from input_pipeline.sources.split_names import SPLIT_NAMES

_ID_FEATURES = ("image/id", "image_id", "image/filename", "filename", "id")
_NAME_FEATURES = ("image/filename", "filename")
_CAPTION_FEATURES = ("captions", "caption")
_CHUNK = 256  # records read at once while captions are collected

log = logging.getLogger(__name__)


def open_config(spec: DataSpec) -> dict[str, Split]:
    """Opens the TFDS data set that `config.data.tfds_name` and `tfds_dir` name; see `open_tfds`."""
    return open_tfds(spec.tfds_name, spec.tfds_dir)


def open_tfds(name_or_builder: Any, tfds_dir: str | os.PathLike = "") -> dict[str, Split]:
    """Opens a prepared data set with the features of `coco_captions`.

    It needs an `image`, `captions` (or `caption`: a text, texts, or a sequence of {"text"}), and may have `image/id`
    and `image/filename`. TFDS's splits are named as here: `restval` joins `train` (Karpathy's split of COCO),
    `validation` is `val`. Captions and ids are kept in memory; images are read when asked for, from many threads.
    The first opening reads all records for the captions, and keeps these beside the data if it may write there.

    Args:
        name_or_builder: "coco_captions", "coco_captions/2014:1.1.0", or a builder whose data are prepared.
        tfds_dir: the folder that prepared data sets live in; "" for TFDS's own default.

    Raises:
        DataError: the data set is not there, not in array_record format, or lacks a feature.
    """
    builder = _open_builder(name_or_builder, tfds_dir) if isinstance(name_or_builder, str) else name_or_builder
    records: dict[str, list[Record]] = {}
    for tfds_split in builder.info.splits:
        split = SPLIT_NAMES.get(tfds_split)
        if split is None:
            log.info("%s: the split %r has no place here; it is not used", builder.info.full_name, tfds_split)
            continue
        records.setdefault(split, []).extend(_records(builder, tfds_split))
    if not records:
        wanted = ", ".join(SPLIT_NAMES)
        raise DataError(f"{builder.info.full_name} in {builder.data_path} has none of the splits {wanted}")
    return {split: Split(split, records[split]) for split in SPLITS if split in records}


def _open_builder(name: str, tfds_dir: str | os.PathLike) -> Any:
    # Imported here, because it takes a second. TFDS loads TensorFlow for its registered builders' code, but not to
    # read prepared files, which therefore is the only way taken.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    where = os.fspath(tfds_dir) or os.fspath(tfds.core.constants.DATA_DIR)
    try:
        return builder_from_files(name, data_dir=where)
    except tfds.core.DatasetNotFoundError:
        raise DataError(
            f"no prepared data set {name!r} in {where} (config.data.tfds_name, config.data.tfds_dir). Prepare it with "
            f"`tfds build {name} --file_format=array_record --data_dir={where}`, or turn a folder of images into one "
            "with `python -m input_pipeline.sources.prepare_tfds`."
        ) from None


def _data_source(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise DataError(f"{builder.info.full_name} has no image feature `image`; it has {', '.join(features)}")
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"{builder.info.full_name} in {builder.data_path} is stored in a format without random access: prepare it "
            f"with `tfds build --file_format=array_record` ({error})"
        ) from None


def _records(builder: Any, split: str) -> list[Record]:
    source = _data_source(builder, split)
    index = _read_index(builder, split, len(source))
    if index is None:
        index = _make_index(builder, split, source)
        _write_index(builder, split, index)
    load = functools.partial(_image_bytes, source)
    return [
        Record(functools.partial(load, place), tuple(captions), image_id, name)
        for place, (image_id, name, captions) in enumerate(index)
    ]


def _image_bytes(source: Sequence[dict[str, Any]], place: int) -> bytes:
    return source[place]["image"]


# The captions and ids of a split as [[id, name, [caption, ...]], ...]: with them in memory a run can build its
# vocabulary and check its splits without reading gigabytes of images.


def _make_index(builder: Any, split: str, source: Sequence[dict[str, Any]]) -> list[list[Any]]:
    features = builder.info.features
    captions_key = next((key for key in _CAPTION_FEATURES if key in features), None)
    if captions_key is None:
        raise DataError(f"{builder.info.full_name} has no feature `captions`; it has {', '.join(features)}")
    id_key = next((key for key in _ID_FEATURES if key in features), None)
    name_key = next((key for key in _NAME_FEATURES if key in features), None)
    log.info("Reading the captions of %s images of %s once", f"{len(source):,}", builder.info.full_name)
    index = []
    for start in range(0, len(source), _CHUNK):
        places = range(start, min(start + _CHUNK, len(source)))
        for place, example in zip(places, source.__getitems__(places), strict=True):
            image_id = _plain(example[id_key]) if id_key else f"{split}/{place}"
            name = f"{builder.info.name}/{split}[{place}]"
            name += f" ({_plain(example[name_key])})" if name_key else ""
            captions = example[captions_key]
            captions = captions["text"] if isinstance(captions, dict) else captions
            captions = [captions] if isinstance(captions, bytes | str) else captions
            index.append([image_id, name, [text for text in map(_plain, captions) if text.strip()]])
    return index


def _plain(value: Any) -> str | int:
    return value.decode("utf-8") if isinstance(value, bytes) else value if isinstance(value, str) else int(value)


def _index_path(builder: Any, split: str) -> epath.Path:
    return epath.Path(builder.data_path) / f"captions_{split}.json"


def _read_index(builder: Any, split: str, count: int) -> list[list[Any]] | None:
    try:
        kept = json.loads(_index_path(builder, split).read_text())
    except (OSError, ValueError):
        return None
    stamp = _stamp(builder, split)
    return kept["images"] if kept.get("stamp") == stamp and len(kept["images"]) == count else None


def _write_index(builder: Any, split: str, index: list[list[Any]]) -> None:
    path = _index_path(builder, split)
    try:
        write_atomically(path, json.dumps({"stamp": _stamp(builder, split), "images": index}))
    except OSError as error:
        log.info("%s cannot be written (%s); the captions are read from the records at each start", path, error)


def _stamp(builder: Any, split: str) -> list[Any]:
    info = builder.info.splits[split]
    return [str(builder.info.full_name), info.num_bytes, list(info.shard_lengths)]
