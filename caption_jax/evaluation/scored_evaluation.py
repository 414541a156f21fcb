"""Scores an evaluation with confidence intervals, per-image scores and caption statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from caption_jax.evaluation.evaluator import Evaluation
from caption_jax.metrics import ImageScores, Interval, diversity, intervals, java_scores, score_images
from caption_jax.metrics.java_metrics import METRICS as JAVA_METRICS
from caption_jax.metrics.scores import explain_zero_cider
from caption_jax.runs.workdir import versions

CONFIDENCE = 0.95  # confidence level of the intervals
SAMPLES = 1000  # number of bootstrap samples
SEED = 0


@dataclass(frozen=True)
class ScoredEvaluation:
    """An evaluation with confidence intervals, per-image scores and caption statistics.

    Attributes:
        evaluation: captions, scores and protocol.
        references: image id -> reference captions.
        intervals: metric name -> value over all images with its confidence interval.
        images: per-image scores.
        diversity: reference-free statistics of the captions; see `caption_jax.metrics.diversity`.
        java_metrics: METEOR and SPICE, if available.
        absent: metric name -> reason why the metric is missing.
        protocol: the evaluation protocol.
        notes: remarks on the scores, for the reader.
        report: the HTML report, if it was written.
    """

    evaluation: Evaluation
    references: Mapping[Any, list[str]]
    intervals: dict[str, Interval]
    images: ImageScores
    diversity: dict[str, float]
    java_metrics: dict[str, float]
    absent: dict[str, str]
    protocol: dict[str, Any]
    notes: tuple[str, ...] = ()
    report: epath.Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metric name -> value, including the Java metrics."""
        return {**self.evaluation.metrics, **self.java_metrics}

    def image_rows(self) -> list[dict[str, Any]]:
        """Returns the id, caption, log-probability (None for unreadable images) and scores of each image."""
        evaluation = self.evaluation
        return [
            {
                "image_id": image_id,
                "caption": evaluation.captions[image_id],
                "log_prob": evaluation.log_probs.get(image_id),
                **{name: round(float(values[row]), 6) for name, values in self.images.values.items()},
                **{name: _round(values.get(image_id)) for name, values in evaluation.per_image.items()},
            }
            for row, image_id in enumerate(self.images.image_ids)
        ]


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


def score_evaluation(
    evaluation: Evaluation,
    references: Mapping[Any, list[str]],
    training_captions: Iterable[str] | None = None,
    *,
    java: bool = True,
    tokenizer: str = "ptb",
) -> ScoredEvaluation:
    """Computes confidence intervals, per-image scores, caption statistics and the Java metrics of an evaluation.

    Args:
        evaluation: the evaluation.
        references: image id -> reference captions, for the same images.
        training_captions: the captions the model was trained on; the fraction of novel captions is omitted if None.
        java: whether to run METEOR and SPICE if they are installed; they are slow.
        tokenizer: see `caption_jax.metrics.score`.
    """
    scores = score_images(references, evaluation.captions, tokenizer=tokenizer)
    absent = dict.fromkeys(JAVA_METRICS, "computed in evaluate mode only")
    java_metrics: dict[str, float] = {}
    if java:
        java_metrics, absent = java_scores(references, evaluation.captions, tokenizer=tokenizer)
    protocol = {
        **evaluation.protocol,
        "intervals": f"{100 * CONFIDENCE:g} % confidence, {SAMPLES} bootstrap samples of the images, seed {SEED}",
        "versions": versions(),
    }
    return ScoredEvaluation(
        evaluation=evaluation,
        references=references,
        intervals=intervals(scores, SAMPLES, CONFIDENCE, SEED),
        images=scores,
        diversity=diversity(evaluation.captions, training_captions, tokenizer=tokenizer),
        java_metrics=java_metrics,
        absent=absent,
        protocol=protocol,
        notes=tuple(filter(None, [explain_zero_cider(scores)])),
    )


def as_json(scored_evaluation: ScoredEvaluation) -> dict[str, Any]:
    """Returns the contents of `eval_<split>.json`."""
    protocol = scored_evaluation.protocol
    return {
        "split": protocol["split"],
        "step": protocol["step"],
        "metrics": scored_evaluation.metrics,
        "intervals": {name: [interval.low, interval.high] for name, interval in scored_evaluation.intervals.items()},
        "absent": scored_evaluation.absent,
        "diversity": scored_evaluation.diversity,
        "protocol": protocol,
        "notes": list(scored_evaluation.notes),
        "images": scored_evaluation.image_rows(),
    }
