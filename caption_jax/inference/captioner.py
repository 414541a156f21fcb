"""Captions for images from a trained run: `caption_jax.load(workdir).caption([...])`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32
from PIL import Image

from caption_jax.errors import ConfigError
from caption_jax.inference.captioning import decode_features, encode_for_decoding
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import load_model
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.specs import DecodeSpec, as_mapping, build_spec
from input_pipeline.images import ImageError, ImageLike
from input_pipeline.special_tokens import BOS, EOS, PAD

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
        decode: decoding settings; those of the run by default.
        batch_size: images that are captioned at once.
    """

    def __init__(
        self,
        description: RunDescription,
        variables: PyTree,
        decode: DecodeSpec | None = None,
        batch_size: int = 16,
    ):
        self._description, self._variables, self._batch_size = description, variables, batch_size
        decode_spec = decode or description.spec.decode

        def run(variables: PyTree, pixels: jax.Array, context: jax.Array | None) -> Any:
            model = description.model()
            features = encode_for_decoding(model, variables, pixels, context, description)
            decoded = decode_features(model, variables, features, description, decode_spec)
            return decoded.tokens, decoded.log_prob

        def embed_images(variables: PyTree, pixels: jax.Array) -> jax.Array:
            model = description.model()
            features = encode_for_decoding(model, variables, pixels, None, description)
            return model.apply(variables, features, method="embed_images")

        def embed_texts(variables: PyTree, ids: jax.Array) -> jax.Array:
            return description.model().apply(variables, ids, ids != PAD, train=False, method="embed_texts")

        about = description.cache_key()
        self._run = CachedProgram(run, "caption", {**about, "decode": as_mapping(decode_spec)})
        self._embed_images = CachedProgram(embed_images, "embed_images", about)
        self._embed_texts = CachedProgram(embed_texts, "embed_texts", about)

    def caption(self, images: Sequence[ImageLike], context: Sequence[Sequence[str]] | None = None) -> list[Caption]:
        """Captions images: paths, encoded bytes, PIL images or uint8 arrays [height, width, 3].

        Args:
            images: the images.
            context: for each image the texts that go with it, such as `["title of its page"]`, or `[]`; for models
                that were trained with context. An empty text is none.

        Raises:
            ImageError: an image cannot be read; it names the image. `caption_each` goes on instead.
            TypeError: `images` is one image, or the texts of an image are one text.
            ValueError: the model takes no context, or less than there is, or there is not one for each image.
        """
        _check_list("caption", images)
        if context is not None and len(context) != len(images):
            raise ValueError(f"{len(images)} images need as many lists of texts as context, not {len(context)}")
        captions = []
        for result in self.caption_each(images, context):
            if isinstance(result, ImageError):
                raise result
            captions.append(result)
        return captions

    def caption_each(
        self, images: Iterable[ImageLike], context: Iterable[Sequence[str]] | None = None
    ) -> Iterator[Caption | ImageError]:
        """Yields, in order, the caption of each image or the error that says why it has none; see `caption`."""
        texts_per_image = itertools.repeat(()) if context is None else context
        for chunk in _chunks(zip(images, texts_per_image, strict=context is not None), self._batch_size):
            with ThreadPoolExecutor(max_workers=4) as pool:
                loaded = list(pool.map(self._load, (image for image, _ in chunk)))
            readable = [not isinstance(image, ImageError) for image in loaded]
            pixels = list(itertools.compress(loaded, readable))
            texts = list(itertools.compress((texts for _, texts in chunk), readable))
            captions = iter(self._caption_pixels(pixels, texts) if pixels else [])
            for image in loaded:
                yield image if isinstance(image, ImageError) else next(captions)

    def embed_images(self, images: Sequence[ImageLike]) -> Float32[np.ndarray, "images width"]:
        """Unit vectors of images, as `caption` takes them; their product with those of texts is their similarity.

        Raises:
            ImageError: an image cannot be read; it names the image.
            TypeError: `images` is one image.
            ValueError: the model has no space that its images share with texts.
        """
        _check_list("embed_images", images)
        self._description.check_shared_space()

        def load(chunk: list[ImageLike]) -> list[np.ndarray]:
            with ThreadPoolExecutor(max_workers=4) as pool:
                return list(pool.map(self._description.preprocessing.load, chunk))

        return self._embed(self._embed_images, images, load)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Unit vectors of texts, in the same space as those of images; longer texts than captions are cut.

        Raises:
            TypeError: `texts` is one text.
            ValueError: the model has no space that its texts share with images.
        """
        _check_list("embed_texts", texts)
        self._description.check_shared_space()
        return self._embed(self._embed_texts, texts, self._description.text_tokenizer.encode)

    def _embed(
        self, run: Callable, items: Iterable[Any], load: Callable[[list[Any]], Sequence[np.ndarray]]
    ) -> Float32[np.ndarray, "items width"]:
        batches = [np.zeros((0, self._description.spec.model.shared_space.width), np.float32)]
        for chunk in _chunks(items, self._batch_size):
            vectors = run(self._variables, self._batch_of(load(chunk)))
            batches.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(batches)

    def _load(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            return self._description.preprocessing.load(image)
        except ImageError as error:
            return error

    def _caption_pixels(self, pixels: list[np.ndarray], texts: list[Sequence[str]]) -> list[Caption]:
        context = self._batch_of(self._context_ids(texts), PAD) if any(texts) else None
        tokens, log_probs = jax.device_get(self._run(self._variables, self._batch_of(pixels), context))
        rows = zip(tokens[: len(pixels)], log_probs[: len(pixels)], strict=True)
        return [self._to_caption(tokens.tolist(), float(log_prob)) for tokens, log_prob in rows]

    def _context_ids(self, texts: list[Sequence[str]]) -> Int32[np.ndarray, "images slots length"]:
        """Texts of each image in the text encoder's ids; a slot without a text holds <pad> alone."""
        slots = self._description.spec.model.context.slots
        for texts_of_image in texts:
            _check_list("context", texts_of_image)
            if len(texts_of_image) > slots:
                raise ConfigError(
                    f"{len(texts_of_image)} texts beside an image; this run's model takes {slots} "
                    "(config.model.context.slots)"
                )
        reader = self._description.text_tokenizer
        ids = np.full((len(texts), slots, reader.max_length), PAD, np.int32)
        for row, texts_of_image in zip(ids, texts, strict=True):
            non_empty = [text for text in texts_of_image if text.strip()]
            row[: len(non_empty)] = reader.encode(non_empty)
        return ids

    def _batch_of(self, arrays: Sequence[np.ndarray], filler: int = 0) -> np.ndarray:
        """The arrays as a batch of one row or `batch_size`, so that two programs at most are compiled."""
        shape = (1 if len(arrays) == 1 else self._batch_size, *arrays[0].shape)
        batch = np.full(shape, filler, arrays[0].dtype)
        batch[: len(arrays)] = arrays
        return batch

    def _to_caption(self, tokens: list[int], log_prob: float) -> Caption:
        vocabulary = self._description.vocabulary
        until_end = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        pieces = vocabulary.pieces(token for token in until_end if token not in (BOS, PAD))
        return Caption(vocabulary.decode(tokens), log_prob, tuple(pieces))


def load(
    workdir: str, which: str = "best", decode_config: DecodeSpec | Mapping[str, Any] | None = None, batch_size: int = 16
) -> Captioner:
    """Loads the model that a training run left in `workdir`.

    Args:
        workdir: the run's workdir, or a folder `model-<step>` of one, wherever that is now; local or on a bucket.
        which: "best" by validation CIDEr-D, or "last", which takes longer.
        decode_config: other decoding settings than the run's (keys as in `config.decode`).
        batch_size: images that are captioned at once.

    Raises:
        FileNotFoundError: the folder is not a workdir, or holds no model; or a file of the model is missing.
        ValueError: a file of the model is not as it was written; it is named.
    """
    if isinstance(decode_config, Mapping):
        decode_config = build_spec(DecodeSpec, decode_config, "decode")
    model = load_model(workdir, which)
    return Captioner(model.description, model.weights.variables, decode_config, batch_size)


def _check_list(method: str, items: Any) -> None:
    if isinstance(items, str | os.PathLike | bytes | Image.Image):
        what = "images" if method in ("caption", "embed_images") else "texts"
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
