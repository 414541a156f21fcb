"""Renders the report from the templates. All values are escaped, and undefined values raise errors."""

from __future__ import annotations

import base64
import functools
import statistics
from collections.abc import Mapping, Sequence

from caption_jax.evaluation.report.html.charts import make_training_charts
from caption_jax.evaluation.report.html.examples import Example
from caption_jax.evaluation.report.html.run_facts import RunFacts
from caption_jax.evaluation.report.metric_descriptions import describe_metric, format_as_in_papers
from caption_jax.evaluation.scored_evaluation import CONFIDENCE, ScoredEvaluation
from caption_jax.specs.decode_summary import decode_settings
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.extras import optional_packages

with optional_packages("the HTML report"):
    import jinja2


def render(
    facts: RunFacts, scored_evaluation: ScoredEvaluation, examples: Mapping[str, Sequence[Example]], rows: Sequence[Row]
) -> str:
    """Renders the page as text that can be encoded as UTF-8.

    Args:
        facts: the name of the run, which is the heading of the page, and how it was trained.
        scored_evaluation: scores, captions and protocol of a split.
        examples: the "best", "worst" and "random" examples from `make_examples`.
        rows: logged metrics of the run.
    """
    attention_examples = {  # by id, to remove duplicates
        example.image_id: example for group in examples.values() for example in group if example.attention
    }
    page = _load_template().render(
        run=facts,
        scored_evaluation=scored_evaluation,
        protocol=scored_evaluation.protocol,
        confidence=f"{100 * CONFIDENCE:g} %",
        charts=make_training_charts(rows),
        examples=examples,
        attention_examples=list(attention_examples.values()),
        aspect_ratio=_compute_aspect_ratio(examples),
    )
    # Unencodable characters, such as lone surrogates in a file name, are replaced with question marks.
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("caption_jax.evaluation.report.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    environment.filters["decode_settings"] = decode_settings
    environment.filters["describe_metric"] = describe_metric
    environment.filters["in_papers"] = format_as_in_papers
    return environment.get_template("report.html.j2")


def _compute_aspect_ratio(examples: Mapping[str, Sequence[Example]]) -> float:
    """Returns the aspect ratio (width / height) of the image frames, the clipped median over the images."""
    ratios = [example.thumbnail.width / example.thumbnail.height for group in examples.values() for example in group]
    return min(max(statistics.median(ratios), 0.75), 1.5) if ratios else 1.0
