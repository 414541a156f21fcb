"""Small in-memory splits whose images encode their index in the split."""

from __future__ import annotations

import io
from collections.abc import Collection

import numpy as np
from PIL import Image

from caption_jax.config import default_config
from caption_jax.specs import DataSpec, build_spec
from input_pipeline.images import Preprocessing
from input_pipeline.records import Record, Split

PREPROCESSING = Preprocessing(4)


class CharacterVocabulary:
    """A vocabulary with one token id per character."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        ids = [4 + ord(character) for character in text][: max_length - 2]
        padding = [1] * (max_length - 2 - len(ids))
        return np.array([0, *ids, 2, *padding], np.int32)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(chr(token - 4) for token in ids if token >= 4)


def make_png(index: int) -> bytes:
    """Returns a PNG in which every pixel is (index, index, 100)."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (index, index, 100)).save(buffer, "PNG")
    return buffer.getvalue()


def make_split(num_images: int, num_captions: int = 3, unreadable: Collection[int] = (), name: str = "train") -> Split:
    """Returns a split in which image i has the id 1000 + i and the captions "i/0", "i/1", ...

    The images with an index in `unreadable` cannot be decoded.
    """
    records = []
    for index in range(num_images):
        data = b"not an image" if index in unreadable else make_png(index)
        captions = tuple(f"{index}/{number}" for number in range(num_captions))
        records.append(Record(lambda data=data: data, captions, 1000 + index))
    return Split(name, records)


def make_data_spec(batch_size: int = 4, captions_per_image: int = 1, workers: int = 2, **changes) -> DataSpec:
    config = default_config().data
    config.batch_size = config.eval_batch_size = batch_size
    config.captions_per_image = captions_per_image
    config.workers = workers
    config.max_length = 8
    config.update(changes)
    return build_spec(DataSpec, config, "data")


def assert_equal_batches(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(actual[key], expected[key], err_msg=key)
