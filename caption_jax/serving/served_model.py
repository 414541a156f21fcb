"""A trained model with the programs that a server offers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32, UInt8

from caption_jax.errors import ConfigError
from caption_jax.inference.caption_program import make_caption_program
from caption_jax.inference.captioner import Caption, make_caption
from caption_jax.inference.context_texts import encode_context_texts
from caption_jax.inference.ensemble import load_ensemble
from caption_jax.inference.image_attention import (
    WordAttention,
    attention_per_word,
    find_grid_side,
    make_attention_program,
)
from caption_jax.inference.image_inputs import ImageInput, check_image, read_image
from caption_jax.parameters.stored_dtypes import STORED, find_stored_dtype
from caption_jax.retrieval.index_format import ModelIdentity
from caption_jax.runs.loading import load_model
from caption_jax.runs.weights import fingerprint
from caption_jax.serving.caption_request import CaptionRequest, Offer, Program
from caption_jax.serving.caption_service import Row
from caption_jax.serving.served_embedding import ServedEmbedding
from caption_jax.serving.served_index import ServedIndex
from caption_jax.serving.stored_images import StoredImages
from caption_jax.specs import DecodeSpec, as_mapping
from caption_jax.specs.decode_summary import decode_settings
from input_pipeline.limits import Limits
from input_pipeline.special_tokens import BOS, EOS, PAD, UNK

_NO_TOKEN = -1  # padding of prefixes
_NO_LIMIT = 2**30  # a maximum length that is never reached


@dataclasses.dataclass(frozen=True)
class AttendedCaption(Caption):
    """A caption with the attention over the image for each of its words."""

    attention: WordAttention


class ServedModel:
    """A model for `CaptionService`.

    Args:
        workdir: the workdir of a run, or a model folder.
        which: "best", "last" or a step, as in `--checkpoint`.
        decode: decoding settings.
        beams: numbers of beams to offer; that of `decode` is added if its method is beam search.
        limits: limits on images.
        weights: dtype of the weights in memory; see `caption_jax.load`.

    Raises:
        ConfigError: the settings cannot be served.
        FileNotFoundError: there is no model.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        which: str | int,
        decode: DecodeSpec,
        beams: Sequence[int],
        limits: Limits,
        weights: str = STORED,
    ):
        model = load_model(workdir, which, dtype=weights)
        self._description = description = model.description.with_limits(limits)
        self._variables, self._step, self._workdir = model.weights.variables, model.weights.step, workdir
        self._decode = decode = _complete(decode, description.model_settings.max_length)
        if decode.method == "beam":
            beams = (decode.num_beams, *beams)
        default = Program("beam", decode.num_beams) if decode.method == "beam" else Program("greedy")
        self._grid_side = find_grid_side(self._variables)
        self.offer = Offer(
            default,
            tuple(dict.fromkeys(beams)),
            decode.max_length,
            self._encode_prefix,
            prefix=decode.prefix,
            attention=self._grid_side > 0,
            max_texts=description.spec.model.context.max_texts,
        )
        ensemble = load_ensemble(decode.ensemble, description, str(workdir), weights=weights)
        self._other_variables = ensemble.variables
        self._programs = {
            program: make_caption_program(description, make_spec(decode, program), ensemble, workdir)
            for program in self.offer.programs
        }
        self._attention_program = make_attention_program(description, workdir)
        self._sizes: tuple[int, ...] = ()  # for which the programs are compiled

    def load(self, image: ImageInput) -> UInt8[np.ndarray, "size size 3"]:
        """Decodes an image. Raises ImageError if it cannot be read."""
        check_image(image, "the image")
        named = read_image(image, self._description.preprocessing.limits)
        return self._description.preprocessing.load(named.image, name=named.name)

    def run(self, program: Program, rows: list[Row], size: int) -> list[tuple[Caption, ...]]:
        """Returns the captions of each row, best first. Captions that the options rule out are left out.

        The first caption of a row whose request has `attention` is an `AttendedCaption`.

        Args:
            program: the program of all rows.
            rows: the images and their options.
            size: size to which the batch is padded.
        """
        side = self._description.preprocessing.size
        pixels = np.zeros((size, side, side, 3), np.uint8)
        pixels[: len(rows)] = [row.pixels for row in rows]
        prefixes, limits = self._make_limits([row.request for row in rows], size)
        context = self._encode_context([row.request for row in rows], size)
        arguments = (self._variables, pixels, context, self._other_variables, prefixes, limits)
        tokens, log_probs = jax.device_get(self._programs[program](*arguments))
        captions = [self._make_captions(*outputs) for outputs in zip(tokens, log_probs, strict=True)][: len(rows)]
        indices = [index for index, row in enumerate(rows) if row.request.attention and captions[index]]
        if indices:
            requests = [rows[index].request for index in indices]
            attention = self._compute_attention(pixels[indices], tokens[indices, 0], requests, size)
            for index, attention_of_words in zip(indices, attention, strict=True):
                best, *others = captions[index]
                captions[index] = (
                    AttendedCaption(best.text, best.log_prob, best.tokens, attention_of_words),
                    *others,
                )
        return captions

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Compiles all programs for the sizes, or loads them from disk, and runs each once."""
        side = self._description.preprocessing.size
        for program in self.offer.programs:
            for size in sizes:
                self.run(program, [Row(np.zeros((side, side, 3), np.uint8), CaptionRequest(program))], size)
        for size in sizes if self.offer.attention else ():
            pixels = np.zeros((size, side, side, 3), np.uint8)
            self._compute_attention(pixels, np.full((size, self.offer.max_length - 1), PAD, np.int32), (), size)
        self._sizes = tuple(sorted(sizes))

    def describe(self) -> Mapping[str, Any]:
        """Returns facts about the model, in JSON."""
        encoder = self._description.spec.model.encoder
        return {
            "step": self._step,
            "encoder": type(encoder).__name__.removesuffix("Backbone"),
            "image_size": self._description.preprocessing.size,
            "resize": self._description.preprocessing.resize,
            "vocabulary": self._description.vocabulary.size,
            "weights": find_stored_dtype(self._variables),
            "decode": decode_settings(as_mapping(self._decode)),
        }

    def identify(self) -> ModelIdentity:
        """Returns the identity of the model, which an index must have. Reads all weights."""
        return ModelIdentity(self._step, fingerprint(self._variables))

    def make_embedder(
        self, index: str | os.PathLike[str] | None = None, images: StoredImages | None = None
    ) -> ServedEmbedding | None:
        """Returns the joint embedding, or None if the model has none and there is no index.

        Args:
            index: folder of the index to search.
            images: the folder of its images, to serve thumbnails of them.

        Raises:
            MissingFileError: there is no index.
            WorkdirError: the index was built with another model or is damaged, or the model has no joint embedding.
            ConfigError: none of the indexed images is in `images`.
        """
        served = None
        if index is not None:
            self._description.check_joint_embedding()  # before an error that suggests to build an index
            width = self._description.spec.model.joint_embedding.width
            served = ServedIndex(index, self.identify(), width, images)
        elif not self._description.has_joint_embedding:
            return None
        return ServedEmbedding(self._description, self._variables, self._workdir, served)

    def _compute_attention(
        self,
        pixels: UInt8[np.ndarray, "images side side 3"],
        tokens: Int32[np.ndarray, "images length"],
        requests: Sequence[CaptionRequest],
        size: int,
    ) -> list[WordAttention]:
        """Returns the attention for captions, in a batch of the smallest compiled size that holds them.

        Args:
            pixels: the images.
            tokens: the token ids of their captions without <s>, padded.
            requests: their requests, which have the context.
            size: size of the batch if no program has been compiled yet.
        """
        count, length = tokens.shape
        size = next((compiled for compiled in self._sizes if compiled >= count), size)
        batch = np.zeros((size, *pixels.shape[1:]), np.uint8)
        batch[:count] = pixels
        padded = np.full((size, self.offer.max_length - 1), PAD, np.int32)
        padded[:count, :length] = tokens
        context = self._encode_context(requests, size)
        attention = jax.device_get(self._attention_program(self._variables, batch, padded, context))[:count]
        vocabulary, shape = self._description.vocabulary, (-1, self._grid_side, self._grid_side)
        results = []
        for ids, weights in zip(padded, attention, strict=False):
            words, per_word = attention_per_word(vocabulary, ids, weights)
            results.append(WordAttention(tuple(words), per_word[:, : self._grid_side**2].reshape(shape)))
        return results

    def _make_limits(
        self, requests: Sequence[CaptionRequest], size: int
    ) -> tuple[Int32[np.ndarray, "size prefix"], Int32[np.ndarray, " size"]]:
        """Returns the prefixes and the maximum lengths of a batch, as `make_caption_program` needs them."""
        prefixes = np.full((size, max(self.offer.max_length - 2, 1)), _NO_TOKEN, np.int32)
        limits = np.full(size, _NO_LIMIT, np.int32)
        for row, request in enumerate(requests):
            prefixes[row, : len(request.prefix)] = request.prefix
            limits[row] = request.max_length or _NO_LIMIT
        return prefixes, limits

    def _encode_context(
        self, requests: Sequence[CaptionRequest], size: int
    ) -> Int32[np.ndarray, "size texts text_length"] | None:
        """Returns the context of a batch, or None if the model has none. Requests without texts share its program."""
        if not self.offer.max_texts:
            return None
        padding = [()] * (size - len(requests))
        return encode_context_texts(self._description, [*(request.context for request in requests), *padding])

    def _make_captions(
        self, tokens: Int32[np.ndarray, "candidates length"], log_probs: np.ndarray
    ) -> tuple[Caption, ...]:
        vocabulary = self._description.vocabulary
        return tuple(
            make_caption(vocabulary, ids.tolist(), float(log_prob))
            for ids, log_prob in zip(tokens, log_probs, strict=True)
            if np.isfinite(log_prob)
        )

    def _encode_prefix(self, text: str) -> list[int] | None:
        ids = self._description.vocabulary.encode(text, 4 * len(text) + 2).tolist()
        return None if UNK in ids else [i for i in ids if i not in (BOS, EOS, PAD)]


def make_spec(decode: DecodeSpec, program: Program) -> DecodeSpec:
    """Returns the decoding settings of a program. Its candidates are all of its beams."""
    if program.method == "greedy":
        return dataclasses.replace(decode, method="greedy", prefix="", rerank_weight=0.0, consensus_weight=0.0)
    count = program.beams
    return dataclasses.replace(decode, method="beam", num_beams=count, candidates=count, prefix="")


def _complete(decode: DecodeSpec, max_length: int) -> DecodeSpec:
    if decode.method == "sample":
        raise ConfigError(
            'config.decode.method="sample" cannot be served, because samples depend on the other images of a batch: '
            "set --config.decode.method=greedy or beam"
        )
    length = min(decode.max_length, max_length) if decode.max_length else max_length
    return dataclasses.replace(decode, max_length=length)
