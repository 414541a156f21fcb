"""Metrics for captions: plain Python over strings, no JAX and no Java.

from caption_jax.evaluation import score
score(references={1: ["a dog runs", "a running dog"]}, hypotheses={1: "a dog"})
"""

from caption_jax.evaluation.cider import DocumentFrequencies
from caption_jax.evaluation.results import (
    ImageSetError,
    ResultsError,
    check_image_set,
    read_annotations,
    read_results,
    write_results,
)
from caption_jax.evaluation.scores import ImageScores, protocol, score, score_images

__all__ = [
    "DocumentFrequencies",
    "ImageScores",
    "ImageSetError",
    "ResultsError",
    "check_image_set",
    "protocol",
    "read_annotations",
    "read_results",
    "score",
    "score_images",
    "write_results",
]
