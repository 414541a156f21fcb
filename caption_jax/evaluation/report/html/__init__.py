"""HTML report of an evaluation: a standalone file without scripts or network requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etils import epath

from caption_jax.evaluation.report.html.examples import Example
from caption_jax.evaluation.report.html.run_facts import RunFacts
from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.files import write_atomically


def write_report(
    path: epath.PathLike,
    facts: RunFacts,
    scored_evaluation: ScoredEvaluation,
    examples: Mapping[str, Sequence[Example]],
    rows: Sequence[Row] = (),
) -> None:
    """Writes the report as a single HTML file.

    Args:
        path: output file, local or on a bucket.
        facts: the name of the run, and how it was trained.
        scored_evaluation: scores, captions and protocol of a split.
        examples: the "best", "worst" and "random" examples from `make_examples`.
        rows: logged metrics of the run; if there are none, training curves are omitted.
    """
    from caption_jax.evaluation.report.html.page import render

    write_atomically(path, render(facts, scored_evaluation, examples, rows))
