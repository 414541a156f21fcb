"""The pixel cache, which contains the decoded and resized training images, written before training starts.

Preprocessing on the host is deterministic, because crops, flips and colour changes are part of the training step.
Batches with and without the cache are therefore equal.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from caption_jax.feature_cache.cache_folder import choose_folder, find_missing_blocks, prepare_folder
from caption_jax.runs.experiment import Experiment
from input_pipeline.images import ImageError
from input_pipeline.inputs import fingerprint
from input_pipeline.pixel_files import PixelFiles, StoredPixels
from input_pipeline.pixel_readers import decode_in_order
from input_pipeline.prefetch import prefetch_to_device


def prepare_pixels(experiment: Experiment) -> StoredPixels | None:
    """Opens the pixels of the training split, after decoding and writing missing ones.

    Returns:
        The pixels, or None if `config.data.pixel_cache.use` is "never".

    Raises:
        ConfigError: the folder is on a bucket, or there is not enough disk space.
    """
    settings = experiment.spec.data.pixel_cache
    if settings.use == "never":
        return None
    split, key = experiment.split("train"), cache_key(experiment)
    parent = str(settings.folder or experiment.workdir / "pixels")
    folder = choose_folder(parent, key, "config.data.pixel_cache.folder")
    files = PixelFiles(folder, len(split), experiment.description.preprocessing.size)
    logging.info(
        "pixels: %d images of %d x %d, %.2f GB in %s",
        *(files.images, files.size, files.size, files.images * files.bytes_per_image / 1e9, folder),
    )
    _write_missing(experiment, files, key)
    pixels = StoredPixels(files, split)
    if pixels.problems:
        logging.warning(
            "%d images could not be read when the pixels were written; after repairing them, delete %s",
            *(len(pixels.problems), folder),
        )
    return pixels


def cache_key(experiment: Experiment) -> dict[str, Any]:
    """Returns everything that determines the pixels, as JSON-serialisable values."""
    preprocessing, split = json.loads(experiment.description.preprocessing.to_json()), experiment.split("train")
    limits = experiment.spec.limits.image_key()
    return {
        "format": 1,
        "preprocessing": {name: preprocessing[name] for name in ("size", "resize", "interpolation", "pixels")},
        **({"limits": limits} if limits else {}),
        "images": {"split": split.name, "count": len(split), "fingerprint": fingerprint(split)},
    }


def _write_missing(experiment: Experiment, files: PixelFiles, key: dict[str, Any]) -> None:
    """Writes the missing blocks that are assigned to this process, and waits for those of other processes."""
    if missing := find_missing_blocks(files):
        prepare_folder(files, len(missing), key, "set config.data.pixel_cache.folder to another disk")
    if jax.process_index() == 0 and missing:
        files.create()
    _wait_for_all("the file of pixels is created")
    while missing:
        _write_blocks(experiment, files, missing)
        missing = find_missing_blocks(files)  # none, unless another run has created the file again
    _wait_for_all("pixels are written")


def _wait_for_all(event: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


class _Block(NamedTuple):
    """A block of decoded images: its index, uint8 pixels [images, size, size, 3], and errors by index in the split."""

    number: int
    pixels: np.ndarray
    problems: dict[int, str]


def _write_blocks(experiment: Experiment, files: PixelFiles, missing: Sequence[int]) -> None:
    images = sum(len(files.image_indices(block)) for block in missing)
    with (
        experiment.display.phase("pixels", images, "images") as phase,
        prefetch_to_device(_decode_blocks(experiment, files, missing, phase.advance), None, size=1) as blocks,
    ):
        for block in blocks:
            files.write(*block)


def _decode_blocks(
    experiment: Experiment, files: PixelFiles, missing: Sequence[int], advance: Callable[[], None]
) -> Iterator[_Block]:
    """Yields decoded blocks, and calls `advance` after each image."""
    split, preprocessing = experiment.split("train"), experiment.description.preprocessing
    indices = [index for number in missing for index in files.image_indices(number)]
    images = decode_in_order(split, preprocessing, experiment.spec.data, indices)
    with contextlib.closing(images):
        for number in missing:
            rows = files.image_indices(number)
            block = _Block(number, np.zeros((len(rows), *files.shape), np.uint8), {})
            for row, index in enumerate(rows):
                image = next(images)
                if isinstance(image, ImageError):
                    block.problems[index] = image.reason
                else:
                    block.pixels[row] = image
                advance()
            yield block
