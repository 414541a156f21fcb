"""Caption metrics in pure Python and NumPy. JAX and Java are not required.

    from caption_jax.metrics import score
    score(references={1: ["a dog runs", "a running dog"]}, hypotheses={1: "a dog"})

On the command line: `python -m caption_jax.metrics results.json annotations.json [other_results.json]`.
"""

from caption_jax.metrics.cider import DocumentFrequencies
from caption_jax.metrics.cross_tuning import cross_tune, split_by_hash
from caption_jax.metrics.diversity import diversity
from caption_jax.metrics.java_metrics import java_scores
from caption_jax.metrics.results import (
    ImageSetError,
    ResultsError,
    check_image_set,
    describe_subset,
    read_annotations,
    read_results,
    write_results,
)
from caption_jax.metrics.retrieval_scores import retrieval_scores
from caption_jax.metrics.scores import ImageScores, mean_over_runs, protocol, score, score_images
from caption_jax.metrics.significance import Comparison, Interval, compare, intervals
from caption_jax.metrics.tokenization import TOKENIZERS, TokenizationWarning

__all__ = [
    "TOKENIZERS",
    "Comparison",
    "DocumentFrequencies",
    "ImageScores",
    "ImageSetError",
    "Interval",
    "ResultsError",
    "TokenizationWarning",
    "check_image_set",
    "compare",
    "cross_tune",
    "describe_subset",
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
    "split_by_hash",
    "write_results",
]
