"""METEOR and SPICE, computed by their Java implementations, or reported as absent if Java or its jars are missing."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from caption_jax.metrics.scores import tokenize_pair
from input_pipeline.extras import describe_missing, is_installed

METRICS = ("METEOR", "SPICE")
_FILES = {
    "METEOR": ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    # pycocoevalcap downloads SPICE's parser on first use; this module downloads nothing.
    "SPICE": (
        "spice/spice-1.0.jar",
        "spice/lib/stanford-corenlp-3.6.0.jar",
        "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ),
}


def unavailable_metrics() -> dict[str, str]:
    """Returns metric name -> reason for each metric that cannot be computed on this machine."""
    if not is_installed("pycocoevalcap"):
        return dict.fromkeys(METRICS, f"needs {describe_missing('pycocoevalcap')}")
    if shutil.which("java") is None:
        return dict.fromkeys(METRICS, "Java is not installed (no `java` on the PATH)")
    folder = Path(next(iter(find_spec("pycocoevalcap").submodule_search_locations)))
    missing = {name: [path for path in paths if not (folder / path).is_file()] for name, paths in _FILES.items()}
    return {name: f"missing in pycocoevalcap: {', '.join(paths)}" for name, paths in missing.items() if paths}


def java_scores(
    references: Mapping[Hashable, Sequence[str]], hypotheses: Mapping[Hashable, str], *, tokenizer: str = "ptb"
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores captions with the available Java metrics of pycocoevalcap, using the same tokens as `score`.

    Args:
        references: see `score`.
        hypotheses: see `score`.
        tokenizer: see `score`. Both metrics are made for English words, so they are absent for other tokens than "ptb".

    Returns:
        Metric name -> value for the metrics that ran, and metric name -> reason for those that are absent.

    Raises:
        TypeError, ImageSetError, DataError, ConfigError: see `score`.
    """
    if tokenizer == "ptb":
        absent = unavailable_metrics()
    else:
        absent = dict.fromkeys(METRICS, f"made for English words, not for the tokenizer {tokenizer!r}")
    tokenized_references, tokenized_hypotheses = tokenize_pair(references, hypotheses, tokenizer=tokenizer)
    results = {image_id: [caption] for image_id, caption in tokenized_hypotheses.items()}
    scores: dict[str, float] = {}
    for name in METRICS:
        if name in absent:
            continue
        try:
            scores[name] = float(_make_scorer(name).compute_score(tokenized_references, results)[0])
        except Exception as error:  # if a Java program fails, the other scores are still returned
            absent[name] = f"the Java program failed ({type(error).__name__}: {error})"
    return scores, absent


def _make_scorer(name: str):
    if name == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor()
    from pycocoevalcap.spice.spice import Spice

    return Spice()
