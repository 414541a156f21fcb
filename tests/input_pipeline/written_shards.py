"""One small dataset as tar shards, as Parquet shards and as a folder."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_splits import PREPROCESSING, CharacterVocabulary, assert_equal_batches, make_data_spec, make_png

from caption_jax.specs import DataSpec
from input_pipeline.batches import Batch, TrainBatches, train_batches
from input_pipeline.images import Preprocessing
from input_pipeline.prepared.preparation import Request, prepare
from input_pipeline.records import Split
from input_pipeline.sources import open_splits, read_splits

FORMATS = ("webdataset", "parquet")
# Key of each image -> its captions. Image i has the colour i.
TRAIN = {f"{number:03d}": (f"{number} a", f"{number} b") for number in range(10)}
VAL = {f"{number:03d}": (f"{number} a",) for number in range(10, 13)}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes a tar file with members of these names and contents."""
    with tarfile.open(path, "w") as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def make_members(samples: Mapping[str, tuple[str, ...]]) -> list[tuple[str, bytes]]:
    """Returns two members per sample: the image, and the captions as a text if there is one, otherwise as JSON."""
    members = []
    for key, captions in samples.items():
        members.append((f"{key}.png", make_png(int(key))))
        if len(captions) == 1:
            members.append((f"{key}.txt", captions[0].encode()))
        else:
            members.append((f"{key}.json", json.dumps({"caption": list(captions), "width": 5}).encode()))
    return members


def write_parquet(path: Path, samples: Mapping[str, tuple[str, ...]], rows_per_group: int = 4, **columns: Any) -> Path:
    """Writes a Parquet file with images as the Hugging Face Hub stores them; `columns` are added or replaced."""
    import pyarrow
    import pyarrow.parquet

    default = {
        "image": [{"bytes": make_png(int(key)), "path": f"{key}.png"} for key in samples],
        "caption": [list(captions) for captions in samples.values()],
        "image_id": list(samples),
    }
    table = pyarrow.table({name: column for name, column in {**default, **columns}.items() if column is not None})
    pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return path


def copy_to_shards(splits: Mapping[str, Split], folder: Path, source: str) -> Path:
    """Writes the images, captions and ids of a folder dataset to one shard per split. Returns the folder."""
    folder.mkdir()
    for name, split in splits.items():
        if source == "parquet":
            images = [{"bytes": record.source().read_bytes(), "path": None} for record in split]
            columns = {"image": images, "caption": [list(record.captions) for record in split]}
            write_parquet(folder / f"{name}.parquet", {}, image_id=split.image_ids, **columns)
            continue
        members = []
        for number, record in enumerate(split):
            members.append((f"{number}.png", record.source().read_bytes()))
            members.append(
                (f"{number}.json", json.dumps({"captions": record.captions, "id": record.image_id}).encode())
            )
        write_tar(folder / f"{name}.tar", members)
    return folder


def write_shards(folder: Path, source: str) -> DataSpec:
    """Writes the dataset to two training shards and one validation shard. Returns its spec."""
    folder.mkdir(exist_ok=True)
    keys = list(TRAIN)
    shards = {
        "train-0000": {key: TRAIN[key] for key in keys[:7]},
        "train-0001": {key: TRAIN[key] for key in keys[7:]},
        "val-0000": VAL,
    }
    for name, samples in shards.items():
        if source == "webdataset":
            write_tar(folder / f"{name}.tar", make_members(samples))
        else:
            write_parquet(folder / f"{name}.parquet", samples)
    return make_shard_spec(folder, source)


def make_shard_spec(folder: Path, source: str, **changes: Any) -> DataSpec:
    """Returns the spec of shards in a folder."""
    return make_data_spec(source=source, root=str(folder), **changes)


def write_folder(folder: Path, **changes: Any) -> DataSpec:
    """Writes the dataset as a folder of images, whose ids are the keys. Returns its spec."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for split, samples in (("train", TRAIN), ("val", VAL)):
        for key, captions in samples.items():
            (folder / "images" / f"{key}.png").write_bytes(make_png(int(key)))
            lines.append(json.dumps({"image": key, "captions": captions, "split": split}) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    return make_data_spec(source="folder", root=str(folder), **changes)


def assert_prepared_is_equal(spec: DataSpec, folder: Path, workers: int = 0) -> None:
    """Asserts that `prepare` writes the images, captions and ids of a dataset, which worker processes can read, too."""
    spec = dataclasses.replace(spec, image_size=PREPROCESSING.size, workers=workers)
    preprocessing = Preprocessing(spec.image_size, spec.resize, spec.interpolation)
    expected = read_splits(spec)
    card, is_new = prepare(Request(folder, spec), expected)
    assert is_new and card.source["source"] == spec.source
    actual = open_splits(dataclasses.replace(spec, source="prepared", root=str(folder)))
    assert list(actual) == list(expected)
    for name, split in expected.items():
        assert actual[name].image_ids == split.image_ids and actual[name].references == split.references
        for record, original in zip(actual[name], pickle.loads(pickle.dumps(split.records)), strict=True):
            np.testing.assert_array_equal(record.image.read_pixels(), preprocessing.load(original.source()))


def make_batches(spec: DataSpec, **processes: int) -> TrainBatches:
    """Returns the training batches of a dataset, of four images each."""
    return train_batches(open_splits(spec)["train"], PREPROCESSING, CharacterVocabulary(), spec, 3, **processes)


def read_batches(spec: DataSpec, count: int) -> list[Batch]:
    """Returns the first training batches of a dataset."""
    batches = make_batches(spec)
    result = [next(batches) for _ in range(count)]
    batches.close()
    return result


def assert_processes_continue(spec: DataSpec, expected: Sequence[Batch], start: int) -> None:
    """Asserts that the batches of a dataset are `expected`, if 1, 2 or 4 processes resume after the first `start`."""
    first = make_batches(spec)
    for batch in expected[:start]:
        assert_equal_batches(next(first), batch)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    for count in (1, 2, 4):
        processes = [make_batches(spec, process_index=index, process_count=count) for index in range(count)]
        for process in processes:
            process.set_state(state)
        for batch in expected[start:]:
            parts = [next(process) for process in processes]
            assert_equal_batches({key: np.concatenate([part[key] for part in parts]) for key in batch}, batch)
        for process in processes:
            process.close()
