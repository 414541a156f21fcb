"""Metrics for captions: plain Python and NumPy over strings, no JAX and no Java.

    from caption_jax.evaluation import score
    score(references={1: ["a dog runs", "a running dog"]}, hypotheses={1: "a dog"})

or `python -m caption_jax.evaluation results.json annotations.json [other_results.json]`.
"""

from caption_jax.evaluation.cider import DocumentFrequencies
from caption_jax.evaluation.diversity import diversity
from caption_jax.evaluation.java_metrics import java_scores
from caption_jax.evaluation.results import (
    ImageSetError,
    ResultsError,
    check_image_set,
    read_annotations,
    read_results,
    write_results,
)
from caption_jax.evaluation.retrieval import retrieval_scores
from caption_jax.evaluation.scores import ImageScores, mean_over_runs, protocol, score, score_images
from caption_jax.evaluation.significance import Comparison, Interval, compare, intervals
from caption_jax.evaluation.tuning import cross_tuned, seeded_halves

__all__ = [
    "Comparison",
    "DocumentFrequencies",
    "ImageScores",
    "ImageSetError",
    "Interval",
    "ResultsError",
    "check_image_set",
    "compare",
    "cross_tuned",
    "diversity",
    "intervals",
    "java_scores",
    "mean_over_runs",
    "protocol",
    "read_annotations",
    "read_results",
    "retrieval_scores",
    "score",
    "score_images",
    "seeded_halves",
    "write_results",
]
