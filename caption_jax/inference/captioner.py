"""Captioning with a trained model: `caption_jax.load(workdir).caption([...])`."""

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

# Types of a single image or text, passed by mistake where a list is required.
_SINGLE_ITEMS = (str, os.PathLike, bytes, Image.Image)


@dataclass(frozen=True)
class Caption:
    """A generated caption.

    Attributes:
        text: the caption.
        log_prob: natural log-probability of the token sequence, including </s>.
        tokens: text of each token.
    """

    text: str
    log_prob: float
    tokens: tuple[str, ...]


class Captioner:
    """A trained model with its preprocessing and vocabulary.

    Args:
        description: the run description stored in the workdir.
        variables: `params` and `batch_stats`.
        decode: decoding settings; defaults to the settings of the run.
        batch_size: number of images per batch.
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

        def generate(variables: PyTree, pixels: jax.Array, context: jax.Array | None) -> Any:
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

        cache_key = description.cache_key()
        self._generate = CachedProgram(generate, "caption", {**cache_key, "decode": as_mapping(decode_spec)})
        self._embed_images = CachedProgram(embed_images, "embed_images", cache_key)
        self._embed_texts = CachedProgram(embed_texts, "embed_texts", cache_key)

    def caption(self, images: Sequence[ImageLike], context: Sequence[Sequence[str]] | None = None) -> list[Caption]:
        """Captions images.

        Args:
            images: paths, encoded bytes, PIL images or uint8 arrays [height, width, 3].
            context: per image, a list of context texts such as `["title of the web page"]`, or `[]`; for models trained
                with context. Empty texts are ignored.

        Raises:
            ImageError: an image cannot be read; the message identifies it. `caption_each` continues instead.
            TypeError: `images` is a single image, or the context of an image is a single string.
            ValueError: the model does not support context or this number of texts per image, or the lengths of `images`
                and `context` differ.
        """
        _check_list("caption", images)
        if context is not None and len(context) != len(images):
            raise ValueError(f"context needs one list of texts per image, got {len(context)} for {len(images)} images")
        captions = []
        for result in self.caption_each(images, context):
            if isinstance(result, ImageError):
                raise result
            captions.append(result)
        return captions

    def caption_each(
        self, images: Iterable[ImageLike], context: Iterable[Sequence[str]] | None = None
    ) -> Iterator[Caption | ImageError]:
        """Yields the caption of each image in order, or an error if the image cannot be read; see `caption`."""
        texts_per_image = itertools.repeat(()) if context is None else context
        for chunk in _split_into_chunks(zip(images, texts_per_image, strict=context is not None), self._batch_size):
            with ThreadPoolExecutor(max_workers=4) as pool:
                results = list(pool.map(self._try_load, (image for image, _ in chunk)))
            is_readable = [not isinstance(result, ImageError) for result in results]
            pixels = list(itertools.compress(results, is_readable))
            texts = list(itertools.compress((texts for _, texts in chunk), is_readable))
            captions = iter(self._caption_pixels(pixels, texts) if pixels else [])
            for result in results:
                yield result if isinstance(result, ImageError) else next(captions)

    def embed_images(self, images: Sequence[ImageLike]) -> Float32[np.ndarray, "images width"]:
        """Embeds images as unit vectors; the dot product with a text embedding is the cosine similarity.

        Args:
            images: see `caption`.

        Raises:
            ImageError: an image cannot be read; the message identifies it.
            TypeError: `images` is a single image.
            ValueError: the model has no joint embedding.
        """
        _check_list("embed_images", images)
        self._description.check_joint_embedding()

        def load(chunk: list[ImageLike]) -> list[np.ndarray]:
            with ThreadPoolExecutor(max_workers=4) as pool:
                return list(pool.map(self._description.preprocessing.load, chunk))

        return self._embed(self._embed_images, images, load)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """Embeds texts as unit vectors in the joint embedding space; long texts are truncated to the caption length.

        Raises:
            TypeError: `texts` is a single string.
            ValueError: the model has no joint embedding.
        """
        _check_list("embed_texts", texts)
        self._description.check_joint_embedding()
        return self._embed(self._embed_texts, texts, self._description.text_tokenizer.encode)

    def _embed(
        self, embed: Callable, items: Iterable[Any], load: Callable[[list[Any]], Sequence[np.ndarray]]
    ) -> Float32[np.ndarray, "items width"]:
        batches = [np.zeros((0, self._description.spec.model.joint_embedding.width), np.float32)]
        for chunk in _split_into_chunks(items, self._batch_size):
            vectors = embed(self._variables, self._pad_batch(load(chunk)))
            batches.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(batches)

    def _try_load(self, image: ImageLike) -> np.ndarray | ImageError:
        try:
            return self._description.preprocessing.load(image)
        except ImageError as error:
            return error

    def _caption_pixels(self, pixels: list[np.ndarray], texts: list[Sequence[str]]) -> list[Caption]:
        context = self._pad_batch(self._encode_context(texts), PAD) if any(texts) else None
        tokens, log_probs = jax.device_get(self._generate(self._variables, self._pad_batch(pixels), context))
        outputs = zip(tokens[: len(pixels)], log_probs[: len(pixels)], strict=True)
        return [self._make_caption(token_ids.tolist(), float(log_prob)) for token_ids, log_prob in outputs]

    def _encode_context(self, texts: list[Sequence[str]]) -> Int32[np.ndarray, "images texts text_length"]:
        """Returns the token ids of the context texts, for the text encoder. Rows without a text contain only <pad>."""
        max_texts = self._description.spec.model.context.max_texts
        for image_texts in texts:
            if isinstance(image_texts, _SINGLE_ITEMS):
                raise TypeError(f"context takes a list of texts for each image, such as [[{image_texts!r}], ...]")
            if len(image_texts) > max_texts:
                raise ConfigError(
                    f"an image has {len(image_texts)} context texts, but this run's model accepts at most {max_texts} "
                    "(config.model.context.max_texts)"
                )
        tokenizer = self._description.text_tokenizer
        ids = np.full((len(texts), max_texts, tokenizer.max_length), PAD, np.int32)
        for image_ids, image_texts in zip(ids, texts, strict=True):
            non_empty = [text for text in image_texts if text.strip()]
            image_ids[: len(non_empty)] = tokenizer.encode(non_empty)
        return ids

    def _pad_batch(self, arrays: Sequence[np.ndarray], fill_value: int = 0) -> np.ndarray:
        """Stacks arrays into a batch of size 1 or `batch_size`, so that at most two programs are compiled."""
        shape = (1 if len(arrays) == 1 else self._batch_size, *arrays[0].shape)
        batch = np.full(shape, fill_value, arrays[0].dtype)
        batch[: len(arrays)] = arrays
        return batch

    def _make_caption(self, token_ids: list[int], log_prob: float) -> Caption:
        vocabulary = self._description.vocabulary
        caption_ids = token_ids[: token_ids.index(EOS)] if EOS in token_ids else token_ids
        tokens = vocabulary.decode_tokens(i for i in caption_ids if i not in (BOS, PAD))
        return Caption(vocabulary.decode(token_ids), log_prob, tuple(tokens))


def load(
    workdir: str, which: str = "best", decode_config: DecodeSpec | Mapping[str, Any] | None = None, batch_size: int = 16
) -> Captioner:
    """Loads a trained model from `workdir`.

    Args:
        workdir: the workdir of a run, or a `model-<step>` folder, which may have been moved; local or in a bucket.
        which: "best" (by validation CIDEr-D) or "last", which is slower to load.
        decode_config: decoding settings that replace those of the run (keys as in `config.decode`).
        batch_size: number of images per batch.

    Raises:
        FileNotFoundError: `workdir` is not a workdir or contains no model, or a file of the model is missing.
        ValueError: a file of the model is corrupt; the message contains its path.
    """
    if isinstance(decode_config, Mapping):
        decode_config = build_spec(DecodeSpec, decode_config, "decode")
    model = load_model(workdir, which)
    return Captioner(model.description, model.weights.variables, decode_config, batch_size)


def _check_list(method: str, items: Any) -> None:
    if isinstance(items, _SINGLE_ITEMS):
        kind = "images" if method in ("caption", "embed_images") else "texts"
        raise TypeError(f"{method} takes a list of {kind}, not a single {type(items).__name__}")


def _split_into_chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
