"""Writes a prepared dataset: shards in worker processes, a check of every shard, and the card.

A run that was killed is continued by the same command, because shards with a JSON file are complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from input_pipeline.data_spec import DataSpec
from input_pipeline.decoding_memory import BUDGET
from input_pipeline.decoding_process import DecodingProcessError
from input_pipeline.errors import ConfigError
from input_pipeline.files import delete_stale_temporaries, write_atomically
from input_pipeline.images import Preprocessing
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.prepared.card import CARD, SETTINGS, Card, describe_settings, describe_source, read_card
from input_pipeline.prepared.shard_writing import Encoding, ShardTask, verify_shard, write_shard
from input_pipeline.prepared.shards import JPEG, RAW, index_path, read_index
from input_pipeline.records import Split

SHARD_BYTES = 256 * 10**6  # approximate size of a shard
_JPEG_BYTES_PER_PIXEL = 0.7  # of photographs of 224 x 224 pixels, at the default quality

# Runs a function with each of several values, in worker processes if there are any, and yields results as they come.
RunAll = Callable[[Callable[[Any], int], list[Any]], Iterator[int]]


# Opens a phase that shows the progress: a context manager of an object with the method `advance(count)`, or of None.
OpenPhase = Callable[[str, int, str], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Request:
    """A dataset to prepare.

    Attributes:
        folder: the folder to write to.
        spec: `config.data`, whose `workers` is the number of processes.
        image_format: "raw" for uint8 pixels, or "jpeg".
        quality: quality of JPEGs, 1 to 100.
        limits: `config.limits`.
        shard_bytes: approximate size of a shard, in bytes.
    """

    folder: Path
    spec: DataSpec
    image_format: str = RAW
    quality: int = 95
    limits: Limits = DEFAULT_LIMITS
    shard_bytes: int = SHARD_BYTES

    @property
    def images_per_shard(self) -> int:
        """Number of images per shard; the last shard of a split may have fewer."""
        bytes_per_pixel = 3 if self.image_format == RAW else _JPEG_BYTES_PER_PIXEL
        return max(int(self.shard_bytes / (bytes_per_pixel * self.spec.image_size**2)), 1)

    @property
    def encoding(self) -> Encoding:
        """How images are stored."""
        spec = self.spec
        preprocessing = Preprocessing(spec.image_size, spec.resize, spec.interpolation, limits=self.limits)
        return Encoding(preprocessing, self.image_format, self.quality)


def prepare(
    request: Request,
    splits: Mapping[str, Split],
    open_phase: OpenPhase = lambda description, total, unit: contextlib.nullcontext(None),
) -> tuple[Card, bool]:
    """Writes a prepared dataset, or continues one.

    Args:
        request: what to write.
        splits: the dataset, as `sources.read_splits` returns it.
        open_phase: shows the progress, such as the method `phase` of a display.

    Returns:
        The card, and whether it is new; False if the dataset was complete already.

    Raises:
        ConfigError: the folder holds other files, or a dataset with other settings.
        DataError: an image cannot be read and `config.data.on_error` is "stop", or a shard is damaged.
        StorageError: the disk is full, or has another fault.
    """
    folder = request.folder
    quality = request.quality if request.image_format == JPEG else None
    settings = describe_settings(request.spec, splits, request.image_format, quality, request.images_per_shard)
    _check_settings(folder, settings)
    if (folder / CARD).exists():
        return read_card(folder), False
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
    shards = {name: _name_shards(name, len(split), request.images_per_shard) for name, split in splits.items()}
    tasks = _list_missing(request, splits, shards)
    names = [(folder, name) for names in shards.values() for name in names]
    images = sum(map(len, splits.values()))
    with _open_workers(request.spec.workers) as run_all:
        with open_phase("preparing", sum(len(task.records) for task in tasks), "images") as phase:
            _advance(phase, run_all(write_shard, tasks))
        with open_phase("verifying", images, "images") as phase:
            _advance(phase, run_all(verify_shard, names))
    # All shards are complete, so processes that were killed have left the temporary files.
    delete_stale_temporaries(folder, seconds=0)
    card = _make_card(folder, settings, request.spec, shards)
    write_atomically(folder / CARD, card.to_json())
    return card, True


def _advance(phase: Any, counts: Iterator[int]) -> None:
    for count in counts:
        if phase is not None:
            phase.advance(count)


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings of a prepared dataset, which may be incomplete; {} if the folder is new or empty.

    Raises:
        ConfigError: it holds other files.
    """
    try:
        if not folder.exists() or not any(folder.iterdir()):
            return {}
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"--out={folder} is not empty and holds no prepared dataset: set --out to a new folder"
        ) from None


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if a folder holds a dataset with other settings."""
    existing = read_settings(folder)
    if not existing:
        return
    different = [key for key in settings if existing.get(key) != settings[key]]
    if different:
        raise ConfigError(
            f"--out={folder} holds a dataset with other settings ({', '.join(different)} in {SETTINGS}): set --out to "
            "a new folder, or delete this one"
        )


def _name_shards(split: str, images: int, images_per_shard: int) -> list[str]:
    count = -(-images // images_per_shard)
    return [f"{split}-{number:05d}-of-{count:05d}" for number in range(count)]


def _list_missing(request: Request, splits: Mapping[str, Split], shards: Mapping[str, list[str]]) -> list[ShardTask]:
    """Returns the shards that are not complete."""
    tasks, step = [], request.images_per_shard
    for split, names in shards.items():
        for number, name in enumerate(names):
            records = splits[split][number * step : (number + 1) * step]
            if not index_path(request.folder, name).exists():
                tasks.append(ShardTask(request.folder, name, records, request.encoding, request.spec.on_error))
    return tasks


@contextlib.contextmanager
def _open_workers(count: int) -> Iterator[RunAll]:
    """Starts worker processes, unless `count` is 0 or 1. They end with the `with` block, or with this process."""
    if count < 2:
        yield lambda function, values: map(function, values)
        return
    # A file with a name, because these processes inherit no open files.
    with tempfile.NamedTemporaryFile(prefix="prepare-") as locks:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, context, _start_worker, (count, locks.name))

        def run_all(function: Callable[[Any], int], values: list[Any]) -> Iterator[int]:
            futures = [pool.submit(function, value) for value in values]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool:
                raise DecodingProcessError(
                    "a process that writes shards was ended; if the machine is short of memory, lower "
                    "config.data.workers, and run the same command again, which continues"
                ) from None

        try:
            yield run_all
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(processes: int, locks: str) -> None:
    """Prepares a worker process: signals are for its parent, with which it ends, and processes share the memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    BUDGET.share_with_processes(processes, open(locks, "r+b"))  # noqa: SIM115 - for the life of the process

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _make_card(folder: Path, settings: dict[str, Any], spec: DataSpec, shards: Mapping[str, list[str]]) -> Card:
    splits, skipped, size, digest = {}, [], 0, hashlib.sha256()
    for split, names in shards.items():
        indices = [read_index(folder, name) for name in names]
        images = [image for index in indices for image in index.images]
        unreadable = [image for index in indices for image in index.skipped]
        splits[split] = {
            "images": len(images),
            "captions": sum(len(captions) for _, _, captions in images),
            "skipped": len(unreadable),
            "shards": names,
        }
        skipped += [{"split": split, "name": name, "reason": reason} for name, reason in unreadable]
        size += sum(index.bytes for index in indices)
        digest.update("".join(f"{index.sha256}\n" for index in indices).encode())
    return Card(settings, describe_source(spec), splits, size, digest.hexdigest(), skipped)
