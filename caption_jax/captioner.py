"""Captions for images from a trained run: `caption_jax.load(workdir).caption([...])`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32
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
            return decode(model, variables, features, settings, vocabulary=description.vocabulary)

        def embed_images(variables: PyTree, pixels: jax.Array) -> jax.Array:
            images = description.preprocessing.normalise(pixels)
            features = model.apply(variables, images, train=False, method="encode_images")
            return model.apply(variables, features, method="embed_images")

        def embed_texts(variables: PyTree, ids: jax.Array) -> jax.Array:
            return model.apply(variables, ids, ids != PAD, train=False, method="embed_texts")

        self._run, self._embed_images, self._embed_texts = map(jax.jit, (run, embed_images, embed_texts))

    def caption(self, images: Sequence[ImageLike]) -> list[Caption]:
        """Captions images given as paths, encoded bytes, PIL images or uint8 arrays [height, width, 3].

        Raises:
            ImageError: an image cannot be read; it names the image. `caption_each` goes on instead.
            TypeError: `images` is one image.
        """
        _check_list("caption", images)
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

    def embed_images(self, images: Sequence[ImageLike]) -> Float32[np.ndarray, "images width"]:
        """Unit vectors of images, given as to `caption`; their product with those of texts is their similarity.

        Raises:
            ImageError: an image cannot be read; it names the image.
            TypeError: `images` is one image.
            ValueError: the model has no text encoder, so its images have no vectors that texts could be compared with.
        """
        _check_list("embed_images", images)
        self._description.check_text_encoder()

        def load(chunk: list[ImageLike]) -> list[np.ndarray]:
            with ThreadPoolExecutor(max_workers=4) as pool:
                return list(pool.map(self._description.preprocessing.load, chunk))

        return self._embed(self._embed_images, images, load)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Unit vectors of texts, in the same space as those of images; longer texts than captions are cut.

        Raises:
            TypeError: `texts` is one text.
            ValueError: the model has no text encoder.
        """
        _check_list("embed_texts", texts)
        return self._embed(self._embed_texts, texts, self._description.text_reader.encode)

    def _embed(
        self, run: Callable, items: Iterable[Any], load: Callable[[list[Any]], Sequence[np.ndarray]]
    ) -> Float32[np.ndarray, "items width"]:
        found = [np.zeros((0, self._description.config.model.shared_space.width), np.float32)]
        for chunk in _chunks(items, self._batch_size):
            vectors = run(self._variables, self._batch_of(load(chunk)))
            found.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(found)

    def _load(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            return self._description.preprocessing.load(image)
        except ImageError as error:
            return error

    def _caption_pixels(self, pixels: list[np.ndarray]) -> list[Caption]:
        decoded = jax.device_get(self._run(self._variables, self._batch_of(pixels)))
        rows = zip(decoded.tokens[: len(pixels)], decoded.log_prob[: len(pixels)], strict=True)
        return [self._to_caption(tokens.tolist(), float(log_prob)) for tokens, log_prob in rows]

    def _batch_of(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The arrays as a batch of one row or `batch_size`, so that two programs at most are compiled."""
        batch = np.zeros((1 if len(arrays) == 1 else self._batch_size, *arrays[0].shape), arrays[0].dtype)
        batch[: len(arrays)] = arrays
        return batch

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


def _check_list(method: str, items: Any) -> None:
    if isinstance(items, str | os.PathLike | bytes | Image.Image):
        what = "texts" if method == "embed_texts" else "images"
        raise TypeError(f"{method} takes a list of {what}: {method}([...]), not one {type(items).__name__}")


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
