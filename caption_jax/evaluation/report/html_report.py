"""The evaluator that writes the HTML report of a run's best weights."""

from __future__ import annotations

import dataclasses

from caption_jax.evaluation.evaluator import Evaluator, FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.telemetry.metrics_file import read_metrics


@dataclasses.dataclass(frozen=True)
class HtmlReport(Evaluator):
    """`report_<split>.html`; none of unusual images or context."""

    def write(self, final: FinalEvaluation) -> None:
        """Draws examples, and writes them with the metrics and the run's training curves."""
        if final.unusual:
            return
        workdir = final.experiment.workdir
        examples = make_examples(
            final.split, final.assessment, final.experiment.description, final.variables, final.context
        )
        metrics = workdir / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        write_report(workdir / f"report_{final.suffix}.html", workdir.name, final.assessment, examples, rows)
