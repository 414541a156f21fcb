"""Example images of the report: selection, thumbnails and attention maps."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from caption_jax.evaluation.report.attention_panels import attention_panels
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.evaluation.word_attention import stack_context, teacher_forced_attention
from caption_jax.inference.image_attention import attention_per_word
from caption_jax.metrics import ImageScores
from caption_jax.runs.description import RunDescription
from input_pipeline.context import ContextCaptions
from input_pipeline.images import ImageError
from input_pipeline.records import Record, Split

PyTree = Any

_GROUP_SIZE = 8  # images per group
_ATTENTION_IMAGES_PER_GROUP = 2  # number of images per group with attention maps
_THUMBNAIL_SIDE = 400  # longer side of a thumbnail in pixels
_PANEL_SIDE = 200  # longer side of an attention panel in pixels
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class JpegImage:
    """A JPEG-encoded image and its size in pixels."""

    jpeg: bytes
    width: int
    height: int

    @classmethod
    def encode(cls, pixels: UInt8[np.ndarray, "height width 3"]) -> JpegImage:
        """Encodes pixels as JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
        return cls(buffer.getvalue(), pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class Example:
    """An image of the split with its captions and scores.

    Attributes:
        image_id: id of the image.
        thumbnail: the downscaled image.
        caption: the generated caption.
        references: the reference captions.
        scores: metric name -> value for this image.
        attention: a (title, panel) pair per word of the caption (see `attention_panels`); empty for most images.
    """

    image_id: Any
    thumbnail: JpegImage
    caption: str
    references: Sequence[str]
    scores: dict[str, float]
    attention: Sequence[tuple[str, JpegImage]] = ()


def select_images(
    scores: ImageScores, readable: Collection[Any], count: int = _GROUP_SIZE, seed: int = 0
) -> dict[str, list[Any]]:
    """Selects the images with the highest and lowest CIDEr-D, and a random sample of the others.

    Ties are broken by ROUGE-L, then by the order of the split. No image is in two groups. If there are fewer images
    than three full groups, each group has a third of them; a single image is among the best, and two are the best and
    the worst.

    Args:
        scores: per-image scores.
        readable: ids of the images that can be shown.
        count: maximum number of images per group.
        seed: random seed of the sample.

    Returns:
        "best", "worst" and "random" -> image ids. The first two groups start with the most extreme image. Random images
        are in the order of the split.
    """
    indices = [i for i, image_id in enumerate(scores.image_ids) if image_id in readable]
    ranked = sorted(indices, key=lambda i: (-scores.values["CIDEr-D"][i], -scores.values["ROUGE-L"][i]))
    num_ranked = min(count, max(len(indices) // 3, 1))
    best = ranked[:num_ranked]
    worst = ranked[: num_ranked - 1 : -1][:num_ranked]
    permutation = np.random.default_rng(seed).permutation(indices).tolist()
    sample = [i for i in permutation if i not in {*best, *worst}][:count]
    groups = {"best": best, "worst": worst, "random": sorted(sample)}
    return {name: [scores.image_ids[i] for i in group] for name, group in groups.items()}


def make_examples(
    split: Split,
    scored_evaluation: ScoredEvaluation,
    description: RunDescription,
    variables: PyTree,
    context: ContextCaptions | None = None,
) -> dict[str, list[Example]]:
    """Makes the examples of each group of `select_images`, with attention maps for the first images of the group.

    Images that can no longer be read, although the model has captioned them, are omitted with a warning.

    Args:
        split: the images.
        scored_evaluation: captions and scores of the images.
        description: the run description.
        variables: the variables that generated the captions.
        context: context captions of the images, or None.
    """
    groups = select_images(scored_evaluation.images, set(scored_evaluation.evaluation.tokens))
    records = {record.image_id: record for record in split}
    thumbnails = load_thumbnails(description, [records[image_id] for ids in groups.values() for image_id in ids])
    groups = {name: [image_id for image_id in ids if image_id in thumbnails] for name, ids in groups.items()}
    rows = {image_id: row for row, image_id in enumerate(scored_evaluation.images.image_ids)}
    attention_ids = dict.fromkeys(image_id for ids in groups.values() for image_id in ids[:_ATTENTION_IMAGES_PER_GROUP])
    panels = _make_word_panels(
        [records[image_id] for image_id in attention_ids], scored_evaluation, description, variables, context
    )

    def make_example(image_id: Any) -> Example:
        return Example(
            image_id=image_id,
            thumbnail=JpegImage.encode(thumbnails[image_id]),
            caption=scored_evaluation.evaluation.captions[image_id],
            references=scored_evaluation.references[image_id],
            scores={name: float(values[rows[image_id]]) for name, values in scored_evaluation.images.values.items()},
            attention=panels.get(image_id, ()),
        )

    examples = {image_id: make_example(image_id) for ids in groups.values() for image_id in ids}
    return {name: [examples[image_id] for image_id in ids] for name, ids in groups.items()}


def _make_word_panels(
    records: Sequence[Record],
    scored_evaluation: ScoredEvaluation,
    description: RunDescription,
    variables: PyTree,
    context: ContextCaptions | None,
) -> dict[Any, list[tuple[str, JpegImage]]]:
    """Returns image id -> a (title, panel) pair per word of the caption; see `attention_panels`."""
    # Image vectors have no grid to show. With several processes, all of them would have to compute the attention.
    if jax.process_count() > 1 or description.spec.model.image_memory == "vector" or not records:
        return {}
    preprocessing, vocabulary = description.preprocessing, description.vocabulary
    pixels = np.stack([preprocessing.load(record.source(), name=record.name) for record in records])
    tokens = np.stack([scored_evaluation.evaluation.tokens[record.image_id] for record in records])
    attention = teacher_forced_attention(description, variables, pixels, tokens, stack_context(context, records))
    panels = {}
    for record, image, caption_tokens, caption_attention in zip(records, pixels, tokens, attention, strict=True):
        words, word_attention = attention_per_word(vocabulary, caption_tokens, caption_attention)
        # If preprocessing stretches images, show the original aspect ratio and stretch the attention instead.
        shown_image = _load_thumbnail(description, record, _PANEL_SIDE) if preprocessing.resize == "stretch" else image
        panels[record.image_id] = [
            (panel.title, JpegImage.encode(panel.pixels))
            for panel in attention_panels(shown_image, words, word_attention)
        ]
    return panels


def load_thumbnails(description: RunDescription, records: Sequence[Record]) -> dict[Any, np.ndarray]:
    """Returns image id -> thumbnail of the images that can be read."""
    thumbnails = {}
    for record in records:
        try:
            thumbnails[record.image_id] = _load_thumbnail(description, record, _THUMBNAIL_SIDE)
        except (ImageError, OSError) as error:
            logging.warning("the report omits an image that can no longer be read: %s", error)
    return thumbnails


def _load_thumbnail(
    description: RunDescription, record: Record, longer_side: int
) -> UInt8[np.ndarray, "height width 3"]:
    return description.preprocessing.make_thumbnail(record.source(), longer_side, name=record.name)
