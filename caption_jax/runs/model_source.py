"""Names of trained models in configs and on the command line: `FOLDER`, `FOLDER@STEP` or `FOLDER@last`."""

from __future__ import annotations

from dataclasses import dataclass

from caption_jax.runs.weights import CHECKPOINT_CHOICES
from input_pipeline.files import storage_path

ALL = "all"


@dataclass(frozen=True)
class ModelSource:
    """A trained model on disk or in a bucket.

    Attributes:
        folder: a workdir or `model-<step>` folder.
        which: "best", "last", a step, or `ALL` for each model that the run has retained.
    """

    folder: str
    which: str = "best"

    def __str__(self) -> str:
        return self.folder if self.which == "best" else f"{self.folder}@{self.which}"


def parse_source(text: str, *, allow_all: bool = False) -> ModelSource:
    """Parses the name of a model. The best weights are the default.

    Args:
        text: the name. A folder whose own name ends in @STEP is preferred if it exists.
        allow_all: whether `FOLDER@all` stands for all models of a run.
    """
    folder, separator, which = text.rpartition("@")
    choices = (*CHECKPOINT_CHOICES, *([ALL] if allow_all else []))
    is_choice = which in choices or (which.isascii() and which.isdigit())
    if separator and folder and is_choice and not storage_path(text).exists():
        return ModelSource(folder, which)
    return ModelSource(text)
