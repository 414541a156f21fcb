"""Small splits in memory, with images that identify themselves."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from caption_jax.config import default_config
from caption_jax.specs import DataSpec, build_spec
from input_pipeline.images import Preprocessing
from input_pipeline.records import Record, Split

PREPROCESSING = Preprocessing(4)


class Letters:
    """A vocabulary with one id per character."""

    def encode(self, text: str, max_length: int) -> np.ndarray:
        letters = [4 + ord(letter) for letter in text][: max_length - 2]
        pads = [1] * (max_length - 2 - len(letters))
        return np.array([0, *letters, 2, *pads], np.int32)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(chr(token - 4) for token in ids if token >= 4)


def picture(number: int) -> bytes:
    """A PNG whose every pixel is (number, number, 100)."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (number, number, 100)).save(buffer, "PNG")
    return buffer.getvalue()


def make_split(images: int, captions: int = 3, bad: tuple[int, ...] = (), name: str = "train") -> Split:
    """Image i has id 1000 + i and captions "i/0", "i/1", ...; images in `bad` are unreadable."""
    records = []
    for number in range(images):
        data = b"no image" if number in bad else picture(number)
        texts = tuple(f"{number}/{caption}" for caption in range(captions))
        records.append(Record(lambda data=data: data, texts, 1000 + number))
    return Split(name, records)


def data_config(batch_size: int = 4, captions_per_image: int = 1, workers: int = 2, **changes):
    data = default_config().data
    data.batch_size = data.eval_batch_size = batch_size
    data.captions_per_image = captions_per_image
    data.workers = workers
    data.max_length = 8
    data.update(changes)
    return build_spec(DataSpec, data, "data")


def assert_same_batch(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], two[key], err_msg=key)
