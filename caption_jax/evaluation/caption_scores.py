"""Evaluator that scores captions against the references, and reports the teacher-forced loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from caption_jax.evaluation.evaluator import Evaluator, Result, SplitOutputs
from caption_jax.metrics import protocol, score

PyTree = Any


@dataclasses.dataclass(frozen=True)
class CaptionScores(Evaluator):
    """Computes `caption_jax.metrics.score` of the decoded captions, and the loss and token accuracy on references.

    Attributes:
        tokenizer: see `caption_jax.metrics.score`.
    """

    tokenizer: str = "ptb"

    def metric_names(self) -> tuple[str, ...]:
        """Returns the metric names of `score`, followed by "loss" and "token_accuracy"."""
        return (*score({0: ["a dog"]}, {0: "a dog"}), "loss", "token_accuracy")

    def summarise(self, state: Any, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Scores the captions. Images that could not be read count as empty captions."""
        scores = score(outputs.split.references, outputs.captions, tokenizer=self.tokenizer)
        return Result({**scores, **outputs.reference_metrics}, protocol=protocol(tokenizer=self.tokenizer))
