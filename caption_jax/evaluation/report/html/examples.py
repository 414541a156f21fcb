"""The images that a report shows: which ones, small pictures of them, and where the decoder looked at some."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from caption_jax.decoding.predictor import Predictor
from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.sample_summaries import context_rows, word_maps
from caption_jax.metrics import ImageScores
from caption_jax.retrieval.context_captions import encode_images
from caption_jax.runs.experiment import Experiment
from input_pipeline.context import ContextCaptions
from input_pipeline.images import thumbnail
from input_pipeline.records import Record, Split
from input_pipeline.special_tokens import BOS, PAD

PyTree = Any

_EACH = 8  # images of a group
_LOOKED_AT = 2  # of them, those that attention is drawn for
_LONGEST = 400  # pixels of a picture's longer side
_PANEL = 200  # and of one that shows attention
_QUALITY = 80  # of the JPEGs


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
        Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
        return cls(buffer.getvalue(), pixels.shape[1], pixels.shape[0])


@dataclass(frozen=True)
class Example:
    """An image of the split with what was said of it.

    Attributes:
        image_id: its id.
        picture: the image, small.
        caption: the generated caption.
        references: what people said.
        scores: metric name -> value of this image.
        looked: for each word of the caption, a title and the image lit up where the decoder looked; often empty.
    """

    image_id: Any
    picture: Picture
    caption: str
    references: Sequence[str]
    scores: dict[str, float]
    looked: Sequence[tuple[str, Picture]] = ()


def choose(scores: ImageScores, readable: Collection[Any], count: int = _EACH, seed: int = 0) -> dict[str, list[Any]]:
    """Ids of the images with the best and the worst CIDEr-D, and of some drawn at random (the same for a seed).

    Equal ones are ranked by ROUGE-L, then by their place in the split. Best and worst do not overlap where there are
    two images or more.
    """
    places = [place for place, image_id in enumerate(scores.image_ids) if image_id in readable]
    ranked = sorted(places, key=lambda place: (-scores.values["CIDEr-D"][place], -scores.values["ROUGE-L"][place]))
    few = min(count, max(len(places) // 2, 1))
    drawn = np.random.default_rng(seed).permutation(places)[:count].tolist()
    groups = {"best": ranked[:few], "worst": ranked[::-1][:few], "random": sorted(drawn)}
    return {name: [scores.image_ids[place] for place in chosen] for name, chosen in groups.items()}


def make_examples(
    experiment: Experiment,
    split: Split,
    assessment: Assessment,
    variables: PyTree,
    context: ContextCaptions | None = None,
) -> dict[str, list[Example]]:
    """The examples of each group: "best", "worst" and "random"."""
    groups = choose(assessment.images, set(assessment.evaluation.tokens))
    records = {record.image_id: record for record in split}
    rows = {image_id: row for row, image_id in enumerate(assessment.images.image_ids)}
    looked_at = dict.fromkeys(image_id for ids in groups.values() for image_id in ids[:_LOOKED_AT])
    looked = _look(experiment, [records[image_id] for image_id in looked_at], assessment, variables, context)

    def example(image_id: Any) -> Example:
        return Example(
            image_id=image_id,
            picture=Picture.of(_pixels(records[image_id], _LONGEST)),
            caption=assessment.evaluation.captions[image_id],
            references=assessment.references[image_id],
            scores={name: float(values[rows[image_id]]) for name, values in assessment.images.values.items()},
            looked=looked.get(image_id, ()),
        )

    made = {image_id: example(image_id) for ids in groups.values() for image_id in ids}
    return {name: [made[image_id] for image_id in ids] for name, ids in groups.items()}


def _look(
    experiment: Experiment,
    records: Sequence[Record],
    assessment: Assessment,
    variables: PyTree,
    context: ContextCaptions | None,
) -> dict[Any, list[tuple[str, Picture]]]:
    """Image id -> for each word of its caption a title and the image lit up where the decoder looked."""
    from caption_jax.evaluation.report.plots import attention_panels  # matplotlib: a second to import

    # A drawing is not worth a program that several processes must join, and a vector alone is no place in the image.
    if jax.process_count() > 1 or experiment.config.model.image_memory == "vector" or not records:
        return {}
    preprocessing, vocabulary = experiment.description.preprocessing, experiment.description.vocabulary
    pixels = np.stack([preprocessing.load(record.source(), name=record.name) for record in records])
    tokens = np.stack([assessment.evaluation.tokens[record.image_id] for record in records])
    looked = _attention(experiment, variables, pixels, tokens, context_rows(context, records))
    found = {}
    for record, seen, said, attention in zip(records, pixels, tokens, looked, strict=True):
        words, maps = word_maps(vocabulary, said, attention)
        # What the model saw squashed is shown in its own proportions, the map with it.
        image = _pixels(record, _PANEL) if preprocessing.fit == "squash" else seen
        panels = attention_panels(image, words, maps)
        found[record.image_id] = [(title, Picture.of(panel)) for title, panel in panels]
    return found


def _attention(
    experiment: Experiment,
    variables: PyTree,
    pixels: UInt8[np.ndarray, "images size size 3"],
    tokens: Int[np.ndarray, "images length"],
    context: Int[np.ndarray, "images texts length"] | None,
) -> Float[np.ndarray, "images length slots"]:
    """Where in the image the decoder looked while it said the tokens, whatever method chose them."""
    model, description = experiment.model(), experiment.description

    @jax.jit
    def run(variables: PyTree, pixels: jax.Array, tokens: jax.Array, context: jax.Array | None) -> jax.Array:
        images = description.preprocessing.normalise(pixels)
        features = encode_images(model, variables, images, context, description)
        attention = Predictor(model, variables, features).attention(tokens[:, None], BOS, PAD)[:, 0]
        return attention[..., : features.image_slots]

    return jax.device_get(run(variables, pixels, tokens, context))


def _pixels(record: Record, longest: int) -> UInt8[np.ndarray, "height width 3"]:
    return thumbnail(record.source(), longest, name=record.name)
