"""The HTML report of an evaluation: one file that opens anywhere, without a network and without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from etils import epath

from caption_jax.evaluation.assessment import Assessment
from caption_jax.evaluation.report.html.examples import Example
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.files import write_atomically


def write_report(
    path: epath.PathLike,
    run_name: str,
    assessment: Assessment,
    examples: Mapping[str, Sequence[Example]],
    rows: Sequence[Row] = (),
) -> None:
    """Writes the report as one HTML file.

    Args:
        path: the file, local or on a bucket.
        run_name: the report's title.
        assessment: scores, captions and protocol of a split.
        examples: the images to show, from `make_examples`: groups of "best", "worst" and "random" ones.
        rows: the run's logged metrics, for the training curves; without any there are no curves.
    """
    from caption_jax.evaluation.report.html.page import render

    write_atomically(path, render(run_name, assessment, examples, rows))
