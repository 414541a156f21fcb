"""Evaluator that writes the HTML report of a run's best weights."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from absl import logging

from caption_jax.errors import MissingPackageError
from caption_jax.evaluation.evaluator import Evaluator, FinalEvaluation
from caption_jax.evaluation.report.html import write_report
from caption_jax.evaluation.report.html.examples import make_examples
from caption_jax.evaluation.report.html.run_facts import RunFacts, make_run_facts
from caption_jax.runs.sessions import read_sessions
from caption_jax.runs.soup_record import read_record
from caption_jax.runtime.process import current_command
from caption_jax.telemetry.metrics_file import Row, read_metrics
from input_pipeline.extras import require


@dataclasses.dataclass(frozen=True)
class HtmlReport(Evaluator):
    """Writes `report_<split>.html`, except for evaluations with non-default images or context.

    Logs a warning instead if the `train` extra is not installed.
    """

    def write(self, final: FinalEvaluation) -> None:
        """Writes the report with metrics, examples and the training curves of the run."""
        if final.non_default_inputs:
            return
        try:
            require(f"report_{final.suffix}.html", "jinja2")
        except MissingPackageError as error:  # not raised, because the scores have already been written
            logging.warning("%s", error)
            return
        workdir = final.experiment.workdir
        examples = make_examples(
            final.split, final.scored_evaluation, final.experiment.description, final.variables, final.context
        )
        metrics_file = workdir / "metrics.jsonl"
        rows = read_metrics(metrics_file) if metrics_file.exists() else []
        facts = _collect_facts(final, rows)
        write_report(workdir / f"report_{final.suffix}.html", facts, final.scored_evaluation, examples, rows)


def _collect_facts(final: FinalEvaluation, rows: Sequence[Row]) -> RunFacts:
    """Collects the facts about a run from its workdir, its spec and its training split, if that is open."""
    experiment = final.experiment
    is_external = "data" in final.scored_evaluation.protocol  # then the splits are not those of the run
    train = None if is_external else experiment.splits.get("train")
    facts = make_run_facts(
        experiment.workdir.name,
        experiment.spec.data,
        read_sessions(experiment.workdir),
        train_counts=None if train is None else (len(train), len(train.captions)),
        planned_steps=experiment.spec.train.steps or None,
        rows=rows,
        report_command=current_command(),
        now=datetime.datetime.now().astimezone(),
    )
    record = read_record(experiment.workdir)
    return (
        facts if record is None else dataclasses.replace(facts, trained=f"{record}", end="Not trained, but averaged.")
    )
