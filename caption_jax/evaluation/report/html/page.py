"""Renders the report from the templates. All values are escaped, and undefined values raise errors."""

from __future__ import annotations

import base64
import functools
import statistics
from collections.abc import Mapping, Sequence

from caption_jax.evaluation.report.html.charts import make_training_charts
from caption_jax.evaluation.report.html.examples import Example
from caption_jax.evaluation.report.html.run_facts import RunFacts
from caption_jax.evaluation.scored_evaluation import CONFIDENCE, ScoredEvaluation
from caption_jax.specs.decode_summary import decode_settings
from caption_jax.telemetry.metrics_file import Row
from input_pipeline.extras import optional_packages

with optional_packages("the HTML report"):
    import jinja2

# Metrics that papers print in hundredths.
PRINTED_IN_HUNDREDTHS = ("CIDEr-D", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "SPICE", "ROUGE-L")

_DESCRIPTIONS = {
    "CIDEr-D": "agreement with the references; rare words count more (0 to 10; papers print 100 times as much)",
    "BLEU-1": "unigram precision with brevity penalty (0 to 1)",
    "BLEU-2": "n-grams up to length 2",
    "BLEU-3": "n-grams up to length 3",
    "BLEU-4": "n-grams up to length 4",
    "ROUGE-L": "longest common subsequence of words (0 to 1)",
    "METEOR": "word matches, including stems, synonyms and paraphrases (0 to 1)",
    "SPICE": "matches of objects, attributes and relations (0 to 1)",
    "exact_match": "fraction of captions identical to a reference",
    "loss": "of the references, in nats per token (lower is better)",
    "token_accuracy": "fraction of reference tokens predicted correctly",
    "distinct-1": "distinct words / total words",
    "distinct-2": "distinct word pairs / total word pairs",
    "vocabulary": "number of distinct words",
    "unique": "fraction of distinct captions",
    "novel": "fraction of captions not in the training captions",
    "mean_length": "words per caption",
    "function_word_ending": "fraction of captions that end in “a”, “the”, “with”, ...",
}


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
    environment.filters["describe_metric"] = _describe_metric
    environment.filters["in_papers"] = _format_as_in_papers
    return environment.get_template("report.html.j2")


def _describe_metric(name: str) -> str:
    """Returns a short explanation of a metric; "" if the metric is unknown."""
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    direction, is_recall, count = name.partition("_R@")  # the names of `retrieval_scores`
    if is_recall:
        return f"fraction of {direction.partition('_')[0]}s with a correct match in the top {count}"
    return "median rank of the first correct match (1 is best)" if name.endswith("_median_rank") else ""


def _format_as_in_papers(value: float, name: str) -> str:
    """Formats a score as papers print it, in hundredths: a CIDEr-D of 0.308 is 30.8. "" for other metrics."""
    return f"{100 * value:.1f}" if name in PRINTED_IN_HUNDREDTHS else ""


def _compute_aspect_ratio(examples: Mapping[str, Sequence[Example]]) -> float:
    """Returns the aspect ratio (width / height) of the image frames, the clipped median over the images."""
    ratios = [example.thumbnail.width / example.thumbnail.height for group in examples.values() for example in group]
    return min(max(statistics.median(ratios), 0.75), 1.5) if ratios else 1.0
