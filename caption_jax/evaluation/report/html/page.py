"""Renders the report's page from templates/: every value is escaped, and an undefined one is an error."""

from __future__ import annotations

import base64
import functools
import statistics
from collections.abc import Mapping, Sequence

import jinja2

from caption_jax.evaluation.assessment import CONFIDENCE, Assessment
from caption_jax.evaluation.report.html.charts import training_charts
from caption_jax.evaluation.report.html.examples import Example
from caption_jax.evaluation.report.terminal import decode_settings
from caption_jax.telemetry.metrics_file import Row

_DESCRIPTIONS = {
    "CIDEr-D": "agreement with the references; rare words count more (0 to 10)",
    "BLEU-1": "words shared with the references (0 to 1)",
    "BLEU-2": "with word pairs",
    "BLEU-3": "with runs of three words",
    "BLEU-4": "with runs of four words",
    "ROUGE-L": "longest common word sequence (0 to 1)",
    "METEOR": "words shared, with stems, synonyms and paraphrases (0 to 1)",
    "SPICE": "objects, attributes and relations shared (0 to 1)",
    "exact_match": "share of captions that are a reference word for word",
    "loss": "of the references, nats a token (lower is better)",
    "token_accuracy": "share of the references' tokens predicted",
    "distinct-1": "different words, share of all words",
    "distinct-2": "different word pairs, share of all pairs",
    "vocabulary": "different words",
    "unique": "different captions, share of all captions",
    "novel": "share of captions that are no training caption",
    "mean_length": "words a caption",
    "function_word_ending": "share of captions that end in “a”, “the”, “with”, ...",
}


def render(
    run_name: str, assessment: Assessment, examples: Mapping[str, Sequence[Example]], rows: Sequence[Row]
) -> str:
    """Renders the page as text that UTF-8 can encode.

    Args:
        run_name: the page's heading.
        assessment: scores, captions and protocol of a split.
        examples: the images of the groups "best", "worst" and "random".
        rows: the run's logged metrics.
    """
    with_attention = {
        example.image_id: example for group in examples.values() for example in group if example.attention
    }
    page = _template().render(
        run_name=run_name,
        assessment=assessment,
        protocol=assessment.protocol,
        confidence=f"{100 * CONFIDENCE:g} %",
        charts=training_charts(rows),
        examples=examples,
        attention_examples=list(with_attention.values()),  # each image once
        aspect_ratio=_aspect_ratio(examples),
    )
    # What no file can hold, such as half of a surrogate pair in a file's name, becomes a question mark.
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _template() -> jinja2.Template:
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
    environment.filters["describe_metric"] = _describe_metric
    return environment.get_template("report.html.j2")


def _describe_metric(name: str) -> str:
    """An explanation for the reader; "" for an unknown metric."""
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    direction, is_recall, count = name.partition("_R@")  # the names of `retrieval_scores`
    if is_recall:
        return f"share of the {direction.partition('_')[0]}s that find one of theirs among the first {count}"
    return "place of the first that is right (1 is best)" if name.endswith("_median_rank") else ""


def _aspect_ratio(examples: Mapping[str, Sequence[Example]]) -> float:
    """Width by height of the frames that images are shown in: the median of the images', within limits."""
    ratios = [example.picture.width / example.picture.height for group in examples.values() for example in group]
    return min(max(statistics.median(ratios), 0.75), 1.5) if ratios else 1.0
