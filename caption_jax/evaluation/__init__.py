"""Metrics for captions: plain Python over strings, no JAX and no Java.

from caption_jax.evaluation import score
score(references={1: ["a dog runs", "a running dog"]}, hypotheses={1: "a dog"})
"""

from caption_jax.evaluation.results import (
    ImageSetError,
    ResultsError,
    check_image_set,
    read_annotations,
    read_results,
    write_results,
)
from caption_jax.evaluation.scores import protocol, score

__all__ = [
    "ImageSetError",
    "ResultsError",
    "check_image_set",
    "protocol",
    "read_annotations",
    "read_results",
    "score",
    "write_results",
]
