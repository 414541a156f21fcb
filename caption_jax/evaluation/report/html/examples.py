"""The images that a report shows: which ones, small copies of them, and where the decoder attended in some."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.report.attention_panels import attention_panels
from caption_jax.evaluation.word_attention import attention_per_word, stack_context, teacher_forced_attention
from caption_jax.metrics import ImageScores
from caption_jax.runs.description import RunDescription
from input_pipeline.context import ContextCaptions
from input_pipeline.images import thumbnail
from input_pipeline.records import Record, Split

PyTree = Any

_GROUP_SIZE = 8  # images
_WITH_ATTENTION = 2  # of each group, the first ones
_CARD_SIDE = 400  # pixels of the longer side
_PANEL_SIDE = 200  # the same of a picture that shows attention
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """A JPEG and its size in pixels."""

    jpeg: bytes
    width: int
    height: int

    @classmethod
    def of(cls, pixels: UInt8[np.ndarray, "height width 3"]) -> Picture:
        """Encodes pixels."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        return cls(buffer.getvalue(), pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class Example:
    """An image of the split with its captions and scores.

    Attributes:
        image_id: its id.
        picture: the image, reduced.
        caption: the generated caption.
        references: the captions that people wrote.
        scores: metric name -> value for this image.
        attention: a title and a picture per word of the caption, see `attention_panels`; empty for most images.
    """

    image_id: Any
    picture: Picture
    caption: str
    references: Sequence[str]
    scores: dict[str, float]
    attention: Sequence[tuple[str, Picture]] = ()


def choose(
    scores: ImageScores, readable: Collection[Any], count: int = _GROUP_SIZE, seed: int = 0
) -> dict[str, list[Any]]:
    """Selects the images with the best and the worst CIDEr-D, and a random sample.

    Ties are broken by ROUGE-L, then by the order of the split. From two readable images on, best and worst do not
    overlap.

    Args:
        scores: scores per image.
        readable: ids of the images that can be shown.
        count: most images of a group.
        seed: of the random sample, which is the same at each call.

    Returns:
        "best", "worst" and "random" -> image ids; the best and worst first, the random ones in the order of the split.
    """
    rows = [row for row, image_id in enumerate(scores.image_ids) if image_id in readable]
    ranked = sorted(rows, key=lambda row: (-scores.values["CIDEr-D"][row], -scores.values["ROUGE-L"][row]))
    extreme = min(count, max(len(rows) // 2, 1))
    sample = np.random.default_rng(seed).permutation(rows)[:count].tolist()
    groups = {"best": ranked[:extreme], "worst": ranked[::-1][:extreme], "random": sorted(sample)}
    return {name: [scores.image_ids[row] for row in chosen] for name, chosen in groups.items()}


def make_examples(
    split: Split,
    assessment: Assessment,
    description: RunDescription,
    variables: PyTree,
    context: ContextCaptions | None = None,
) -> dict[str, list[Example]]:
    """Reads the images of each group of `choose`, and computes attention for the first ones of a group.

    Args:
        split: the images that were captioned.
        assessment: their captions and scores.
        description: the run, for the model and its preprocessing.
        variables: the weights that wrote the captions.
        context: the captions that the model read with each image; None for none.
    """
    groups = choose(assessment.images, set(assessment.evaluation.tokens))
    records = {record.image_id: record for record in split}
    rows = {image_id: row for row, image_id in enumerate(assessment.images.image_ids)}
    with_attention = dict.fromkeys(image_id for ids in groups.values() for image_id in ids[:_WITH_ATTENTION])
    panels = _word_panels(
        [records[image_id] for image_id in with_attention], assessment, description, variables, context
    )

    def example(image_id: Any) -> Example:
        return Example(
            image_id=image_id,
            picture=Picture.of(_thumbnail(records[image_id], _CARD_SIDE)),
            caption=assessment.evaluation.captions[image_id],
            references=assessment.references[image_id],
            scores={name: float(values[rows[image_id]]) for name, values in assessment.images.values.items()},
            attention=panels.get(image_id, ()),
        )

    examples = {image_id: example(image_id) for ids in groups.values() for image_id in ids}
    return {name: [examples[image_id] for image_id in ids] for name, ids in groups.items()}


def _word_panels(
    records: Sequence[Record],
    assessment: Assessment,
    description: RunDescription,
    variables: PyTree,
    context: ContextCaptions | None,
) -> dict[Any, list[tuple[str, Picture]]]:
    """Image id -> a title and a picture per word of its caption, lit up where the decoder attended."""
    # Drawings are not worth a program that all processes would have to join, and a lone vector has no grid to show.
    if jax.process_count() > 1 or description.spec.model.image_memory == "vector" or not records:
        return {}
    preprocessing, vocabulary = description.preprocessing, description.vocabulary
    pixels = np.stack([preprocessing.load(record.source(), name=record.name) for record in records])
    tokens = np.stack([assessment.evaluation.tokens[record.image_id] for record in records])
    attention = teacher_forced_attention(description, variables, pixels, tokens, stack_context(context, records))
    panels = {}
    for record, image, caption_tokens, caption_attention in zip(records, pixels, tokens, attention, strict=True):
        words, word_attention = attention_per_word(vocabulary, caption_tokens, caption_attention)
        # An image that the model saw squashed is shown with its own aspect ratio, and the attention stretched with it.
        shown = _thumbnail(record, _PANEL_SIDE) if preprocessing.fit == "squash" else image
        panels[record.image_id] = [
            (title, Picture.of(panel)) for title, panel in attention_panels(shown, words, word_attention)
        ]
    return panels


def _thumbnail(record: Record, longest: int) -> UInt8[np.ndarray, "height width 3"]:
    return thumbnail(record.source(), longest, name=record.name)
