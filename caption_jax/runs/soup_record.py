"""Provenance of averaged weights: `soup.json` in the workdir of a soup."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etils import epath

from caption_jax.errors import WorkdirError
from input_pipeline.files import write_atomically

FILE_NAME = "soup.json"


@dataclass(frozen=True)
class Ingredient:
    """A model whose weights could become part of a soup.

    Attributes:
        name: the model on the command line, such as "runs/a" or "runs/a@1200".
        step: training step of its weights.
        sha256: fingerprint of its weights.
        score: score of the model alone.
        is_used: whether its weights are part of the average.
    """

    name: str
    step: int
    sha256: str
    score: float
    is_used: bool


@dataclass(frozen=True)
class Trial:
    """A step of the greedy choice: the average of the models kept so far and one more.

    Attributes:
        name: the model that was added.
        score: score of the average with it.
        is_kept: whether it is part of the final average.
    """

    name: str
    score: float
    is_kept: bool


@dataclass(frozen=True)
class SoupRecord:
    """How averaged weights were made.

    Attributes:
        recipe: "uniform" or "greedy".
        metric: name of the metric that judged the models; higher is better.
        score: score of the average.
        norms: description of what was done with batch-norm statistics.
        ingredients: the models, in the order of the command line.
        trials: the steps of the greedy choice in order; empty for a uniform average.
        protocol: evaluation protocol of the scores.
    """

    recipe: str
    metric: str
    score: float
    norms: str
    ingredients: tuple[Ingredient, ...]
    trials: tuple[Trial, ...]
    protocol: Mapping[str, Any]

    @property
    def used(self) -> tuple[Ingredient, ...]:
        """The models whose weights are averaged."""
        return tuple(ingredient for ingredient in self.ingredients if ingredient.is_used)

    def __str__(self) -> str:
        models = ", ".join(f"{ingredient.name} (step {ingredient.step})" for ingredient in self.used)
        return f"{self.recipe} average of {models}"


def write_record(workdir: epath.Path, record: SoupRecord) -> None:
    """Writes soup.json."""
    write_atomically(workdir / FILE_NAME, json.dumps(asdict(record), indent=2) + "\n")


def read_record(workdir: epath.Path) -> SoupRecord | None:
    """Reads soup.json; returns None if the workdir is not that of a soup.

    Raises:
        WorkdirError: the file is damaged.
    """
    path = workdir / FILE_NAME
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        ingredients = tuple(Ingredient(**values) for values in content.pop("ingredients"))
        trials = tuple(Trial(**values) for values in content.pop("trials"))
        return SoupRecord(**content, ingredients=ingredients, trials=trials)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WorkdirError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}): restore it from a copy, or delete it; "
            "the weights do not depend on it"
        ) from error
