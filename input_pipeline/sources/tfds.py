"""The `tfds` source: random access to array_record files of TensorFlow Datasets, without TensorFlow."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from input_pipeline.data_spec import DataSpec
from input_pipeline.extras import optional_packages, select_bucket_backend
from input_pipeline.files import write_atomically
from input_pipeline.records import SPLITS, DataError, Record, Split
from input_pipeline.sources.split_names import SPLIT_NAMES

_ID_FEATURES = ("image/id", "image_id", "image/filename", "filename", "id")
_NAME_FEATURES = ("image/filename", "filename")
_CAPTION_FEATURES = ("captions", "caption")
_CHUNK = 256  # records per read while building the caption index

log = logging.getLogger(__name__)


def open_config(spec: DataSpec) -> dict[str, Split]:
    """Opens the TFDS dataset of `config.data.tfds_name` and `config.data.tfds_dir`; see `open_tfds`."""
    return open_tfds(spec.tfds_name, spec.tfds_dir)


def open_tfds(name_or_builder: Any, tfds_dir: str | os.PathLike = "") -> dict[str, Split]:
    """Opens a prepared dataset with the features of `coco_captions`.

    Required features are `image` and `captions` (or `caption`: text, a list of texts, or a sequence of {"text"});
    `image/id` and `image/filename` are optional. TFDS splits are mapped to `SPLITS`: `restval` (Karpathy's COCO split)
    is merged into `train`, and `validation` becomes `val`. Captions and ids are loaded into memory; images are read on
    access, from any thread. The first call reads all records to build an index of the captions, which is stored next to
    the data if that folder is writable.

    Args:
        name_or_builder: "coco_captions", "coco_captions/2014:1.1.0", or a builder of a prepared dataset.
        tfds_dir: directory of prepared datasets; "" for the TFDS default.

    Raises:
        DataError: the dataset does not exist, is not in array_record format, or lacks a feature.
        MissingPackageError: the `train` extra is not installed.
    """
    builder = _open_builder(name_or_builder, tfds_dir) if isinstance(name_or_builder, str) else name_or_builder
    records: dict[str, list[Record]] = {}
    for tfds_split in builder.info.splits:
        split = SPLIT_NAMES.get(tfds_split)
        if split is None:
            log.info("%s: ignoring the split %r", builder.info.full_name, tfds_split)
            continue
        records.setdefault(split, []).extend(_load_records(builder, tfds_split))
    if not records:
        expected = ", ".join(SPLIT_NAMES)
        raise DataError(f"{builder.info.full_name} in {builder.data_path} has none of the splits {expected}")
    return {split: Split(split, records[split]) for split in SPLITS if split in records}


def _open_builder(name: str, tfds_dir: str | os.PathLike) -> Any:
    # Imported lazily, because it takes a second. TFDS imports TensorFlow for registered builders but not for prepared
    # files, so only prepared files are supported.
    select_bucket_backend(tfds_dir)
    with optional_packages("a TFDS dataset"):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files

    data_dir = os.fspath(tfds_dir) or os.fspath(tfds.core.constants.DATA_DIR)
    try:
        return builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise DataError(
            f"no prepared dataset {name!r} in {data_dir} (config.data.tfds_name, config.data.tfds_dir); prepare it "
            f"with `tfds build {name} --file_format=array_record --data_dir={data_dir}`, or convert an image folder "
            "with `python -m input_pipeline.sources.prepare_tfds`"
        ) from None


def _open_data_source(builder: Any, split: str) -> Sequence[dict[str, Any]]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise DataError(f"{builder.info.full_name} has no image feature `image`, only {', '.join(features)}")
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise DataError(
            f"the file format of {builder.info.full_name} in {builder.data_path} has no random access; prepare the "
            f"dataset with `tfds build --file_format=array_record` ({error})"
        ) from None


def _load_records(builder: Any, split: str) -> list[Record]:
    source = _open_data_source(builder, split)
    index = _read_index(builder, split, len(source))
    if index is None:
        index = _build_index(builder, split, source)
        _write_index(builder, split, index)
    return [
        Record(functools.partial(_read_image, source, row), tuple(captions), image_id, name)
        for row, (image_id, name, captions) in enumerate(index)
    ]


def _read_image(source: Sequence[dict[str, Any]], row: int) -> bytes:
    return source[row]["image"]


# The index of a split is [[id, name, [caption, ...]], ...]. With the index, a run can build its vocabulary and check
# its splits without reading gigabytes of images.


def _build_index(builder: Any, split: str, source: Sequence[dict[str, Any]]) -> list[list[Any]]:
    features = builder.info.features
    captions_key = next((key for key in _CAPTION_FEATURES if key in features), None)
    if captions_key is None:
        raise DataError(f"{builder.info.full_name} has no feature `captions`, only {', '.join(features)}")
    id_key = next((key for key in _ID_FEATURES if key in features), None)
    name_key = next((key for key in _NAME_FEATURES if key in features), None)
    log.info("Building the caption index for %s images of %s", f"{len(source):,}", builder.info.full_name)
    index = []
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            image_id = _to_python(example[id_key]) if id_key else f"{split}/{row}"
            name = f"{builder.info.name}/{split}[{row}]"
            name += f" ({_to_python(example[name_key])})" if name_key else ""
            captions = example[captions_key]
            captions = captions["text"] if isinstance(captions, dict) else captions
            captions = [captions] if isinstance(captions, bytes | str) else captions
            index.append([image_id, name, [text for text in map(_to_python, captions) if text.strip()]])
    return index


def _to_python(value: Any) -> str | int:
    return value.decode("utf-8") if isinstance(value, bytes) else value if isinstance(value, str) else int(value)


def _get_index_path(builder: Any, split: str) -> epath.Path:
    return epath.Path(builder.data_path) / f"captions_{split}.json"


def _read_index(builder: Any, split: str, count: int) -> list[list[Any]] | None:
    try:
        stored = json.loads(_get_index_path(builder, split).read_text())
    except (OSError, ValueError):
        return None
    stamp = _make_stamp(builder, split)
    return stored["images"] if stored.get("stamp") == stamp and len(stored["images"]) == count else None


def _write_index(builder: Any, split: str, index: list[list[Any]]) -> None:
    path = _get_index_path(builder, split)
    try:
        write_atomically(path, json.dumps({"stamp": _make_stamp(builder, split), "images": index}))
    except OSError as error:
        log.info("%s cannot be written (%s); the caption index will be rebuilt at every start", path, error)


def _make_stamp(builder: Any, split: str) -> list[Any]:
    """Returns values that change with the records of the split."""
    info = builder.info.splits[split]
    return [str(builder.info.full_name), info.num_bytes, list(info.shard_lengths)]
