"""Captioning with a trained model: `caption_jax.load(workdir).caption(image)`."""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from caption_jax.inference.caption_program import make_caption_program
from caption_jax.inference.context_texts import encode_context_texts
from caption_jax.inference.embedding_programs import make_embedding_programs
from caption_jax.inference.ensemble import load_ensemble
from caption_jax.inference.image_inputs import ImageInput, as_batch, check_image, read_image
from caption_jax.named_models import locate_model
from caption_jax.parameters.stored_dtypes import FLOAT32, STORED, find_stored_dtype
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import load_model
from caption_jax.specs import DecodeSpec, as_mapping, build_spec
from caption_jax.specs.decode_summary import decode_settings
from input_pipeline.images import ImageError
from input_pipeline.limits import Limits
from input_pipeline.special_tokens import BOS, EOS, PAD
from input_pipeline.tokenizer import Vocabulary

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
    """A trained model with its preprocessing and vocabulary. The main method is `caption`. Thread-safe.

    Batches are padded to a few sizes (`batch_sizes`), each with its own program. A program is compiled when a batch of
    its size first occurs, or in advance by `warm_up`. Compiled programs are stored on disk for later processes, in
    JAX's compilation cache if one is configured, or in the folder `compile_cache` of the workdir, or else in
    `~/.cache/caption-jax`.

    Args:
        description: the run description stored in the workdir.
        variables: `params` and `batch_stats`, stored in any dtype (`stored_dtypes`), which is also used for the other
            models of an ensemble.
        decode: decoding settings; defaults to the settings of the run. A `max_length` of 0 is that of the model.
        batch_size: number of images per batch.
        workdir: the workdir or model folder that the model was loaded from, for `repr` and compiled programs.
        step: the training step of the weights, for `repr`.
        limits: limits on images; defaults to those of the run.

    Raises:
        ValueError: `batch_size` is less than 1, or the models of `decode.ensemble` cannot be combined.
    """

    def __init__(
        self,
        description: RunDescription,
        variables: PyTree,
        decode: DecodeSpec | None = None,
        batch_size: int = 16,
        *,
        workdir: str | os.PathLike[str] | None = None,
        step: int | None = None,
        limits: Limits | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        description = description.with_limits(limits) if limits else description
        self._description, self._variables, self._batch_size = description, variables, batch_size
        self._workdir, self._step = workdir, step
        decode_spec = decode or description.spec.decode
        if not decode_spec.max_length:
            decode_spec = dataclasses.replace(decode_spec, max_length=description.model_settings.max_length)
        self._decode = decode_spec
        self._weights = find_stored_dtype(variables)
        ensemble = load_ensemble(decode_spec.ensemble, description, str(workdir or "this model"), weights=self._weights)
        self._other_variables = ensemble.variables
        self._generate = make_caption_program(description, decode_spec, ensemble, workdir)
        self._embed_images, self._embed_texts = make_embedding_programs(description, workdir)

    def __repr__(self) -> str:
        encoder = self._description.spec.model.encoder
        variant = getattr(encoder, "variant", "") or getattr(encoder, "size", "")
        fields = {
            "workdir": None if self._workdir is None else os.fspath(self._workdir),
            "step": self._step,
            "encoder": f"{type(encoder).__name__.removesuffix('Backbone')} {variant}".strip(),
            "image_size": self._description.preprocessing.size,
            "vocabulary": self._description.vocabulary.size,
            "decode": decode_settings(as_mapping(self._decode)),
            "batch_size": self._batch_size,
            "weights": None if self._weights == FLOAT32 else self._weights,
        }
        return f"Captioner({', '.join(f'{name}={value!r}' for name, value in fields.items() if value is not None)})"

    @property
    def batch_size(self) -> int:
        """Maximum number of images per batch."""
        return self._batch_size

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Sizes to which batches are padded: 1, 4, 16, ... up to the maximum batch size."""
        powers = itertools.takewhile(lambda size: size < self._batch_size, (4**n for n in itertools.count()))
        return (*powers, self._batch_size)

    @overload
    def caption(self, images: ImageInput, context: Sequence[str] | None = None) -> Caption: ...

    @overload
    def caption(
        self, images: Sequence[ImageInput], context: Sequence[Sequence[str]] | None = None
    ) -> list[Caption]: ...

    def caption(self, images: Any, context: Any = None) -> Any:
        """Captions one image or several.

        Args:
            images: one image, or a list or tuple of images. An image is a path, encoded bytes, a binary file object, a
                PIL image, or a uint8 or uint16 array [height, width] or [height, width, 1, 3 or 4]. An array [images,
                height, width, channels] is a list of images.
            context: for models trained with context, the context texts of the image, such as
                `["title of the web page"]`, or a list of such lists for a list of images. Empty texts are ignored.

        Returns:
            The caption of one image, or a list of captions in the order of the images. If the model generates no word,
            the text is "".

        Raises:
            ImageError: an image cannot be read; the message identifies it. `caption_each` continues instead.
            TypeError: an image is of another type, or the context of an image is a single string.
            ValueError: the model does not support context or this number of texts per image, or the lengths of `images`
                and `context` differ.
        """
        batch, is_single = as_batch("caption", images)
        if is_single and context is not None:
            context = [context]
        if context is not None and len(context) != len(batch):
            raise ValueError(f"context needs one list of texts per image, got {len(context)} for {len(batch)} images")
        captions = []
        for result in self.caption_each(batch, context):
            if isinstance(result, ImageError):
                raise result
            captions.append(result)
        return captions[0] if is_single else captions

    def caption_each(
        self,
        images: Iterable[ImageInput],
        context: Iterable[Sequence[str]] | None = None,
        *,
        is_first: bool = True,
    ) -> Iterator[Caption | ImageError]:
        """Yields the caption of each image in order, or an error if the image cannot be read; see `caption`.

        Images are read a batch at a time, so `images` may be a generator of any length. If `is_first` is False, they
        are the continuation of other images, so a partial batch is padded to the full size.

        Raises:
            TypeError: `images` is a single image.
        """
        _check_list("caption_each", images)
        return self._caption_each(images, context, is_first)

    def _caption_each(
        self, images: Iterable[ImageInput], context: Iterable[Sequence[str]] | None, is_first: bool
    ) -> Iterator[Caption | ImageError]:
        texts_per_image = itertools.repeat(()) if context is None else context
        pairs = zip(images, texts_per_image, strict=context is not None)
        for number, chunk in enumerate(_split_into_chunks(pairs, self._batch_size)):
            size = self._choose_batch_size(len(chunk), is_first=is_first and number == 0)
            with ThreadPoolExecutor(max_workers=4) as pool:
                results = list(pool.map(self._try_load, (image for image, _ in chunk)))
            is_readable = [not isinstance(result, ImageError) for result in results]
            pixels = list(itertools.compress(results, is_readable))
            texts = list(itertools.compress((texts for _, texts in chunk), is_readable))
            captions = iter(self._caption_pixels(pixels, texts, size) if pixels else [])
            for result in results:
                yield result if isinstance(result, ImageError) else next(captions)

    def warm_up(self, batch_sizes: Sequence[int] | None = None, *, context: bool = False) -> float:
        """Compiles the programs that `caption` needs, or loads them from disk, so that no call has to wait for them.

        Args:
            batch_sizes: numbers of images per call to prepare for; all of `batch_sizes` by default.
            context: whether to prepare for images with context texts instead of images without.

        Returns:
            The elapsed time in seconds.

        Raises:
            ValueError: a batch size is less than 1, or the model does not support context.
        """
        requested = self.batch_sizes if batch_sizes is None else batch_sizes
        if min(requested, default=1) < 1:
            raise ValueError(f"batch_sizes is {list(requested)}; sizes must be at least 1")
        start = time.perf_counter()
        side = self._description.preprocessing.size
        for size in sorted({self._choose_batch_size(min(size, self._batch_size)) for size in requested}):
            pixels = [np.zeros((side, side, 3), np.uint8)] * size
            self._caption_pixels(pixels, [["a"] if context else []] * size, size)
        return time.perf_counter() - start

    def embed_images(self, images: Sequence[ImageInput]) -> Float32[np.ndarray, "images width"]:
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

        def load(chunk: list[ImageInput]) -> list[np.ndarray]:
            with ThreadPoolExecutor(max_workers=4) as pool:
                return list(pool.map(self._load, chunk))

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
        for number, chunk in enumerate(_split_into_chunks(items, self._batch_size)):
            size = self._choose_batch_size(len(chunk), is_first=number == 0)
            vectors = embed(self._variables, _pad_batch(load(chunk), size))
            batches.append(np.asarray(vectors)[: len(chunk)])
        return np.concatenate(batches)

    def _choose_batch_size(self, count: int, *, is_first: bool = True) -> int:
        """Returns the size to pad a batch to. A partial batch after a full one is padded to the full size, whose
        program has already been compiled.
        """
        return next(size for size in self.batch_sizes if size >= count) if is_first else self._batch_size

    def _load(self, image: ImageInput) -> UInt8[np.ndarray, "size size 3"]:
        check_image(image, "the image")
        preprocessing = self._description.preprocessing
        named = read_image(image, preprocessing.limits)
        return preprocessing.load(named.image, name=named.name)

    def _try_load(self, image: ImageInput) -> np.ndarray | ImageError:
        try:
            return self._load(image)
        except ImageError as error:
            return error

    def _caption_pixels(self, pixels: list[np.ndarray], texts: list[Sequence[str]], size: int) -> list[Caption]:
        context = _pad_batch(self._encode_context(texts), size, PAD) if any(texts) else None
        batch = _pad_batch(pixels, size)
        tokens, log_probs = jax.device_get(self._generate(self._variables, batch, context, self._other_variables))
        outputs = zip(tokens[: len(pixels)], log_probs[: len(pixels)], strict=True)
        vocabulary = self._description.vocabulary
        return [make_caption(vocabulary, token_ids.tolist(), float(log_prob)) for token_ids, log_prob in outputs]

    def _encode_context(self, texts: list[Sequence[str]]) -> Int32[np.ndarray, "images texts text_length"]:
        for image_texts in texts:
            if isinstance(image_texts, _SINGLE_ITEMS):
                raise TypeError(f"context takes a list of texts for each image, such as [[{image_texts!r}], ...]")
        return encode_context_texts(self._description, texts)


def make_caption(vocabulary: Vocabulary, token_ids: list[int], log_prob: float) -> Caption:
    """Makes a caption of generated token ids and their log-probability."""
    caption_ids = token_ids[: token_ids.index(EOS)] if EOS in token_ids else token_ids
    tokens = vocabulary.decode_tokens(i for i in caption_ids if i not in (BOS, PAD))
    return Caption(vocabulary.decode(token_ids), log_prob, tuple(tokens))


def load(
    workdir: str | os.PathLike[str],
    which: str | int = "best",
    decode_config: DecodeSpec | Mapping[str, Any] | None = None,
    batch_size: int = 16,
    limits: Limits | Mapping[str, Any] | None = None,
    weights: str = STORED,
) -> Captioner:
    """Loads a trained model from `workdir`.

    Args:
        workdir: the workdir of a run, a `model-<step>` folder, which may have been moved, or an exported folder; local
            or in a bucket; or the name of an exported folder on the Hugging Face Hub, `hf://owner/name`.
        which: "best" (by validation CIDEr-D), "last" or a step that the run has retained, which are slower to load.
        decode_config: decoding settings that replace those of the run: all of them, or some by their keys in
            `config.decode`.
        batch_size: maximum number of images per batch.
        limits: limits on images that replace those of the run: all of them, or some by their keys in `config.limits`.
        weights: dtype of the weights in memory: "stored" for that of the file, "float32", "bfloat16" or "int8".

    Raises:
        FileNotFoundError: `workdir` is not a workdir or contains no model, or a file of the model is missing.
        ValueError: a file of the model is corrupt, and the message contains its path; or `weights` is unknown.
        OSError: a model on the Hub cannot be downloaded.
    """
    folder = locate_model(workdir)
    model = load_model(folder, which, dtype=weights)
    spec = model.description.spec
    if isinstance(decode_config, Mapping):
        decode_config = build_spec(DecodeSpec, as_mapping(spec.decode) | dict(decode_config), "decode")
    if isinstance(limits, Mapping):
        limits = build_spec(Limits, as_mapping(spec.limits) | dict(limits), "limits")
    return Captioner(
        model.description,
        model.weights.variables,
        decode_config,
        batch_size,
        workdir=folder,
        step=model.weights.step,
        limits=limits,
    )


def _pad_batch(arrays: Sequence[np.ndarray], size: int, fill_value: int = 0) -> np.ndarray:
    """Stacks arrays into a batch of `size`, padded with the fill value."""
    batch = np.full((size, *arrays[0].shape), fill_value, arrays[0].dtype)
    batch[: len(arrays)] = arrays
    return batch


def _check_list(method: str, items: Any) -> None:
    if isinstance(items, _SINGLE_ITEMS):
        kind = "texts" if method == "embed_texts" else "images"
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
