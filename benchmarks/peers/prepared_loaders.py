"""tf.data and webdataset on the pixels of a prepared dataset, for `benchmarks.prepared_input`.

    python -m benchmarks.peers.prepared_loaders --kind=tf --root=PREPARED --count=1000 --size=224 --batch=64

Runs one of `KINDS` as a child process of a benchmark. It first copies the pixels, captions and ids of the dataset to a
TFRecord file or a tar file, and then reads shuffled batches of this copy on one core. Shuffling uses a buffer, as these
libraries read files in order; the larger the buffer, the more it costs.

- tf: TFRecords of tf.train.Example, parsed one by one
- tf-batched: the same, parsed after batching, which suits small records
- webdataset: the package's loader, with decoding and collation in NumPy
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alternate import serve, use_cores

KINDS = ("tf", "tf-batched", "webdataset")
CORES = 1
SHUFFLED = 256  # images in the buffer
_READ_BYTES = 8 * 2**20


def write_tfrecords(root: Path, path: str, size: int) -> None:
    """Writes a prepared dataset as TFRecords."""
    import tensorflow as tf

    def feature(values: list[bytes]) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    with tf.io.TFRecordWriter(path) as writer:
        for record in open_records(root, size):
            captions = [caption.encode() for caption in record.captions]
            features = {"image": feature([record.image.read_pixels().tobytes()]), "captions": feature(captions)}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def make_tf_data_batches(path: str, size: int, batch: int, is_batched: bool) -> Iterator[dict[str, np.ndarray]]:
    """Returns an infinite iterator over batches from TFRecords.

    Args:
        path: the file.
        size: side of the images, in pixels.
        batch: images per batch.
        is_batched: whether records are parsed after batching.
    """
    import tensorflow as tf

    schema = {"image": tf.io.FixedLenFeature([], tf.string), "captions": tf.io.RaggedFeature(tf.string)}

    def decode(example: dict[str, Any]) -> dict[str, Any]:
        pixels = tf.io.decode_raw(example["image"], tf.uint8)
        return {**example, "image": tf.reshape(pixels, (-1, size, size, 3) if is_batched else (size, size, 3))}

    def parse(record: Any) -> dict[str, Any]:
        parse_records = tf.io.parse_example if is_batched else tf.io.parse_single_example
        return decode(parse_records(record, schema))

    records = tf.data.TFRecordDataset(path, buffer_size=_READ_BYTES).repeat().shuffle(SHUFFLED)
    if is_batched:
        batches = records.batch(batch).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        batches = records.map(parse, num_parallel_calls=tf.data.AUTOTUNE).ragged_batch(batch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = CORES
    return iter(batches.prefetch(2).with_options(options))


def write_tar(root: Path, path: str, size: int) -> None:
    """Writes a prepared dataset as a tar file with two members per sample: pixels, and a JSON object of captions."""
    with tarfile.open(path, "w") as file:
        for number, record in enumerate(open_records(root, size)):
            captions = json.dumps({"captions": record.captions}).encode()
            for suffix, content in (("rgb", record.image.read_pixels().tobytes()), ("json", captions)):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def make_webdataset_batches(path: str, size: int, batch: int) -> Iterator[dict[str, Any]]:
    """Returns an infinite iterator over batches from a tar file, without worker processes, as there is one core."""
    import webdataset

    def decode(sample: dict[str, Any]) -> dict[str, Any]:
        pixels = np.frombuffer(sample["rgb"], np.uint8).reshape(size, size, 3)
        return {"image": pixels, "captions": json.loads(sample["json"])["captions"]}

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        images, captions = ([sample[key] for sample in samples] for key in ("image", "captions"))
        return {"image": np.stack(images), "captions": captions}

    samples = webdataset.WebDataset(path, shardshuffle=False).repeat().shuffle(SHUFFLED).map(decode)
    return iter(samples.batched(batch, collation_fn=collate, partial=False))


def open_records(root: Path, size: int) -> Any:
    """Returns the training split of a prepared dataset."""
    from input_pipeline.data_spec import DataSpec
    from input_pipeline.sources import open_splits

    return open_splits(DataSpec(source="prepared", root=str(root), image_size=size))["train"]


def make_loader(kind: str, root: Path, folder: Path, count: int, size: int, batch: int) -> Callable[[], None]:
    """Returns a function that loads the complete batches of `count` images.

    Args:
        kind: one of `KINDS`.
        root: a prepared dataset.
        folder: folder for a copy in the format of the library.
        count: number of images.
        size: side of the images, in pixels.
        batch: images per batch.
    """
    path = str(folder / kind)
    if kind == "webdataset":
        write_tar(root, path, size)
        batches = make_webdataset_batches(path, size, batch)
    else:
        write_tfrecords(root, path, size)
        batches = make_tf_data_batches(path, size, batch, is_batched=kind == "tf-batched")
    shape = (batch, size, size, 3)

    def load_batches() -> None:
        for loaded in itertools.islice(batches, count // batch):
            if loaded["image"].shape != shape or loaded["image"].dtype != np.uint8:
                raise AssertionError(f"{kind}: {loaded['image'].dtype} {loaded['image'].shape}, not uint8 {shape}")

    return load_batches


def main() -> None:
    """Serves a loader as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    use_cores(CORES)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options.kind, options.root, Path(folder), options.count, options.size, options.batch)
        serve(make_loader(*arguments), warm_ups=1, untimed_runs=1)


if __name__ == "__main__":
    main()
