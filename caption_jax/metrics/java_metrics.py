"""METEOR and SPICE, which exist as Java programs only: run where they can be, otherwise named as absent."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from caption_jax.metrics.scores import tokenize_pair

METRICS = ("METEOR", "SPICE")
_JARS = {
    "METEOR": ("meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz"),
    # SPICE's parser, which pycocoevalcap downloads on first use; nothing is downloaded here.
    "SPICE": (
        "spice/spice-1.0.jar",
        "spice/lib/stanford-corenlp-3.6.0.jar",
        "spice/lib/stanford-corenlp-3.6.0-models.jar",
    ),
}


def absent() -> dict[str, str]:
    """The metrics that cannot be computed here, each with the reason."""
    package = find_spec("pycocoevalcap")
    if package is None:
        return dict.fromkeys(METRICS, "pycocoevalcap is not installed")
    if shutil.which("java") is None:
        return dict.fromkeys(METRICS, "there is no Java (no `java` on the path)")
    folder = Path(next(iter(package.submodule_search_locations)))
    missing = {name: [part for part in parts if not (folder / part).is_file()] for name, parts in _JARS.items()}
    return {name: f"pycocoevalcap lacks {', '.join(parts)}" for name, parts in missing.items() if parts}


def java_scores(
    references: Mapping[Hashable, Sequence[str]], hypotheses: Mapping[Hashable, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores captions with the programs that are there, through pycocoevalcap, over the same tokens as `score`.

    Returns:
        Metric name -> value for those that ran, and metric name -> reason for those that are absent.

    Raises:
        ImageSetError, DataError: as `score`.
    """
    missing = absent()
    tokens, candidates = tokenize_pair(references, hypotheses)
    results = {image_id: [candidate] for image_id, candidate in candidates.items()}
    found: dict[str, float] = {}
    for name in METRICS:
        if name in missing:
            continue
        try:
            found[name] = float(_scorer(name).compute_score(tokens, results)[0])
        except Exception as error:  # a program that is there and does not run must not cost the other scores
            missing[name] = f"its program failed ({type(error).__name__}: {error})"
    return found, missing


def _scorer(name: str):
    if name == "METEOR":
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor()
    from pycocoevalcap.spice.spice import Spice

    return Spice()
