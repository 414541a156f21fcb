"""All that can be said of an evaluation's captions: scores with intervals, scores of each image, what they are like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from caption_jax.evaluation.evaluator import Evaluation
from caption_jax.metrics import ImageScores, Interval, diversity, intervals, java_scores, score_images
from caption_jax.metrics.java_metrics import METRICS as JAVA_METRICS
from caption_jax.runs.workdir import versions

CONFIDENCE = 0.95  # of the intervals
SAMPLES = 1000  # bootstrap samples of the images that make them
SEED = 0


@dataclass(frozen=True)
class Assessment:
    """An evaluation and what its captions say.

    Attributes:
        evaluation: captions, scores, protocol.
        references: image id -> reference captions.
        intervals: metric name -> its value over all images and the range that holds it.
        images: scores of each image.
        diversity: what the captions are like, whatever the images.
        java_metrics: METEOR and SPICE, as far as they could be computed.
        absent: metric name -> why it is not there.
        protocol: how all of this came about.
    """

    evaluation: Evaluation
    references: Mapping[Any, list[str]]
    intervals: dict[str, Interval]
    images: ImageScores
    diversity: dict[str, float]
    java_metrics: dict[str, float]
    absent: dict[str, str]
    protocol: dict[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        """Metric name -> value: those of the evaluation and Java's."""
        return {**self.evaluation.metrics, **self.java_metrics}

    def image_rows(self) -> list[dict[str, Any]]:
        """For each image its id, caption, log-probability (None where it could not be read) and scores."""
        found = self.evaluation
        return [
            {
                "image_id": image_id,
                "caption": found.captions[image_id],
                "log_prob": found.log_probs.get(image_id),
                **{name: round(float(values[row]), 6) for name, values in self.images.values.items()},
                **{name: _rounded(values.get(image_id)) for name, values in found.per_image.items()},
            }
            for row, image_id in enumerate(self.images.image_ids)
        ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


def assess(
    found: Evaluation,
    references: Mapping[Any, list[str]],
    training_captions: Iterable[str] | None = None,
    *,
    java: bool = True,
) -> Assessment:
    """Looks at an evaluation's captions from all sides.

    Args:
        found: the evaluation.
        references: image id -> captions of the same images.
        training_captions: what the captioner was trained on, to tell novel captions; None leaves that figure out.
        java: whether to run METEOR and SPICE where they are installed; their programs take a while.
    """
    scores = score_images(references, found.captions)
    absent = dict.fromkeys(JAVA_METRICS, "left to evaluate mode")
    computed: dict[str, float] = {}
    if java:
        computed, absent = java_scores(references, found.captions)
    protocol = {
        **found.protocol,
        "intervals": f"{100 * CONFIDENCE:g} % of {SAMPLES} bootstrap samples of the images, seed {SEED}",
        "versions": versions(),
    }
    return Assessment(
        evaluation=found,
        references=references,
        intervals=intervals(scores, SAMPLES, CONFIDENCE, SEED),
        images=scores,
        diversity=diversity(found.captions, training_captions),
        java_metrics=computed,
        absent=absent,
        protocol=protocol,
    )


def as_results(assessment: Assessment) -> dict[str, Any]:
    """The content of `eval_<split>.json`."""
    how = assessment.protocol
    return {
        "split": how["split"],
        "step": how["step"],
        "metrics": assessment.metrics,
        "intervals": {name: [interval.low, interval.high] for name, interval in assessment.intervals.items()},
        "absent": assessment.absent,
        "diversity": assessment.diversity,
        "protocol": how,
        "images": assessment.image_rows(),
    }
