"""Captions for images from a trained run: `caption_jax.load(workdir).caption([...])`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from caption_jax.checkpoints import read_weights
from caption_jax.decoding import decode
from caption_jax.workdir import RunDescription, read_description
from input_pipeline.images import ImageError, ImageLike
from input_pipeline.tokenizer import BOS, EOS, PAD

PyTree = Any


@dataclass(frozen=True)
class Caption:
    """A generated caption.

    Attributes:
        text: the caption.
        log_prob: natural log of the probability of all of its tokens, </s> included.
        tokens: the pieces of text it was built of.
    """

    text: str
    log_prob: float
    tokens: tuple[str, ...]


class Captioner:
    """A trained model with its own preprocessing and vocabulary.

    Args:
        description: what the workdir says of the model.
        variables: `params` and `batch_stats`.
        decode_config: decoding settings; those of the run's config by default.
        batch_size: images that are captioned at once.
    """

    def __init__(
        self,
        description: RunDescription,
        variables: PyTree,
        decode_config: ConfigDict | None = None,
        batch_size: int = 16,
    ):
        self._description, self._variables, self._batch_size = description, variables, batch_size
        model, settings = description.model(), decode_config or description.config.decode

        def run(variables: PyTree, pixels: jax.Array) -> Any:
            images = description.preprocessing.normalise(pixels)
            features = model.apply(variables, images, train=False, method="encode_images")
            return decode(model, variables, features, settings)

        self._run = jax.jit(run)

    def caption(self, images: Sequence[ImageLike]) -> list[Caption]:
        """Captions images given as paths, encoded bytes, PIL images or uint8 arrays [height, width, 3].

        Raises:
            ImageError: an image cannot be read; it names the image. `caption_each` goes on instead.
            TypeError: `images` is one image.
        """
        if isinstance(images, str | os.PathLike | bytes | Image.Image):
            raise TypeError(f"caption takes a list of images: caption([image]), not one {type(images).__name__}")
        found = []
        for result in self.caption_each(images):
            if isinstance(result, ImageError):
                raise result
            found.append(result)
        return found

    def caption_each(self, images: Iterable[ImageLike]) -> Iterator[Caption | ImageError]:
        """Yields, in order, the caption of each image or the error that says why it has none."""
        for chunk in _chunks(images, self._batch_size):
            with ThreadPoolExecutor(max_workers=4) as pool:
                loaded = list(pool.map(self._load, chunk))
            pixels = [image for image in loaded if not isinstance(image, ImageError)]
            captions = iter(self._caption_pixels(pixels) if pixels else [])
            for image in loaded:
                yield image if isinstance(image, ImageError) else next(captions)

    def _load(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            return self._description.preprocessing.load(image)
        except ImageError as error:
            return error

    def _caption_pixels(self, pixels: list[np.ndarray]) -> list[Caption]:
        rows = 1 if len(pixels) == 1 else self._batch_size  # two programs at most are compiled
        batch = np.zeros((rows, *pixels[0].shape), np.uint8)
        batch[: len(pixels)] = pixels
        decoded = jax.device_get(self._run(self._variables, batch))
        rows = zip(decoded.tokens[: len(pixels)], decoded.log_prob[: len(pixels)], strict=True)
        return [self._to_caption(tokens.tolist(), float(log_prob)) for tokens, log_prob in rows]

    def _to_caption(self, tokens: list[int], log_prob: float) -> Caption:
        vocabulary = self._description.vocabulary
        said = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        pieces = vocabulary.pieces(token for token in said if token not in (BOS, PAD))
        return Caption(vocabulary.decode(tokens), log_prob, tuple(pieces))


def load(workdir: str, which: str = "best", decode_config: ConfigDict | None = None, batch_size: int = 16) -> Captioner:
    """Loads the model that a training run left in `workdir`.

    Args:
        workdir: the run's workdir, local or on a bucket.
        which: "best" by validation CIDEr-D, or "last".
        decode_config: other decoding settings than the run's (keys as in `config.decode`).
        batch_size: images that are captioned at once.

    Raises:
        FileNotFoundError: the folder is not a workdir, or holds no checkpoint.
    """
    return Captioner(read_description(workdir), read_weights(workdir, which).variables, decode_config, batch_size)


def _chunks(items: Iterable[ImageLike], size: int) -> Iterator[list[ImageLike]]:
    chunk: list[ImageLike] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
