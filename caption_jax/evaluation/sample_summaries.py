"""TensorBoard image summaries written at each evaluation: captioned images and cross-attention per word.

TensorBoard sorts cards by tag, so these tags put the captions after all scalars, and the attention after the captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from caption_jax.decoding import Decoded
from caption_jax.evaluation.word_attention import stack_context
from caption_jax.inference.captioning import caption_batch
from caption_jax.inference.image_attention import attention_per_word
from caption_jax.runs.experiment import Experiment
from caption_jax.telemetry.monitoring import Monitor
from input_pipeline.context import ContextCaptions
from input_pipeline.images import ImageError
from input_pipeline.records import Record, Split

PyTree = Any

CAPTIONS_TAG = "validation_images/captions"
ATTENTION_TAG = "validation_images/word_attention"

_NUM_ATTENTION_IMAGES = 4  # number of samples with attention maps
_THUMBNAIL_SIDE = 400  # longer side of a thumbnail in pixels


class SampleSummaries:
    """Writes summaries of the first `config.train.sample_images` images of a split, with captions and attention.

    The images are read once, and the decoder is compiled once. Disabled in multi-process training.

    Args:
        experiment: the run.
        split: the images.
        context: context captions of the images, or None.
    """

    def __init__(self, experiment: Experiment, split: Split, context: ContextCaptions | None = None):
        self._vocabulary = experiment.description.vocabulary
        is_multi_process = jax.process_count() > 1  # every process would have to run the decoder
        count = 0 if is_multi_process else min(experiment.spec.train.sample_images, len(split))
        self._images, self._thumbnails, records = _load_readable(experiment, split.records[:count])
        self._references = [record.captions for record in records]
        # If preprocessing stretches images, show the original aspect ratio and stretch the attention instead.
        is_stretched = experiment.description.preprocessing.resize == "stretch"
        self._shown_images = self._thumbnails if is_stretched else self._images
        self._context = stack_context(context, records)
        self._decode = _make_attention_decoder(experiment)

    def write(self, monitor: Monitor, weights: PyTree, step: int) -> None:
        """Captions the images with `weights` and writes the summaries to the monitor."""
        if not self._references:
            return
        from caption_jax.evaluation.report.summary_cards import (  # matplotlib takes a second to import
            attention_card,
            caption_card,
        )

        decoded = jax.device_get(self._decode(weights, self._images, self._context))
        captions = [self._vocabulary.decode(tokens) for tokens in decoded.tokens]
        caption_cards = list(map(caption_card, self._thumbnails, captions, self._references))
        attention_cards = [
            attention_card(
                self._shown_images[i], *attention_per_word(self._vocabulary, decoded.tokens[i], decoded.attention[i])
            )
            for i in range(min(_NUM_ATTENTION_IMAGES, len(captions)))
        ]
        monitor.images(step, {CAPTIONS_TAG: np.stack(caption_cards), ATTENTION_TAG: np.stack(attention_cards)})


def _load_readable(
    experiment: Experiment, records: Sequence[Record]
) -> tuple[np.ndarray, list[np.ndarray], list[Record]]:
    """Returns the pixels [images, size, size, 3], thumbnails and records of the readable images."""
    preprocessing = experiment.description.preprocessing
    images, thumbnails, readable = [], [], []
    for record in records:
        try:
            source = record.source()
            pixels = preprocessing.load(source, name=record.name)
            thumbnail = preprocessing.make_thumbnail(source, _THUMBNAIL_SIDE, name=record.name)
        except (ImageError, OSError):
            continue  # evaluation reports unreadable images
        images.append(pixels)
        thumbnails.append(thumbnail)
        readable.append(record)
    return np.array(images), thumbnails, readable


def _make_attention_decoder(experiment: Experiment) -> Callable[[PyTree, np.ndarray, np.ndarray | None], Decoded]:
    """Builds a jitted greedy decoder `(variables, pixels, context) -> decoded` that also returns attention per token.

    The attention covers the memory positions of the image, without the context.
    """
    model, description = experiment.model(), experiment.description
    spec = dataclasses.replace(experiment.spec.decode, method="greedy", rerank_weight=0.0, consensus_weight=0.0)

    @jax.jit
    def decode(variables: PyTree, pixels: jax.Array, context: jax.Array | None) -> Decoded:
        batch = {"image": pixels, "context": context}
        features, decoded = caption_batch(model, variables, batch, description, spec, return_attention=True)
        return decoded.replace(all_attention=decoded.all_attention[..., : features.image_memory_length])

    return decode
