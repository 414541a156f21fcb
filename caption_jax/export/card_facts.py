"""Facts about a run for the model card: its data, and the scores of the exported weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from caption_jax.errors import WorkdirError
from caption_jax.parameters.stored_dtypes import FLOAT32, find_stored_dtype
from caption_jax.runs.loading import Model
from caption_jax.runs.sessions import read_sessions
from caption_jax.runs.soup_record import read_record
from caption_jax.specs import RunSpec
from input_pipeline.data_spec import MIXTURE, SHARD_SOURCES, DataSpec


@dataclass(frozen=True)
class EvaluationFacts:
    """The scores of `eval_<split>.json`.

    Attributes:
        split: name of the split.
        metrics: value by name.
        intervals: 95 % confidence interval by name of the metric; some metrics have none.
        protocol: the evaluation protocol.
    """

    split: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that the files of its model do not contain.

    Attributes:
        name: name of the model.
        dataset: name of the training data, without folders.
        splits: split -> number of "images" and "captions"; empty if the workdir does not record them.
        evaluations: evaluations of the exported weights.
        soup: the models whose weights were averaged; "" if the weights are those of one run.
    """

    name: str
    dataset: str
    splits: Mapping[str, Mapping[str, int]]
    evaluations: tuple[EvaluationFacts, ...]
    soup: str = ""


def read_facts(workdir: epath.Path, model: Model) -> RunFacts:
    """Collects the facts about a model from its workdir.

    Raises:
        WorkdirError: a file is damaged.
    """
    sessions, soup = read_sessions(workdir), read_record(workdir)
    return RunFacts(
        name=workdir.name,
        dataset=describe_dataset(model.description.spec),
        splits=sessions[-1].splits if sessions else {},
        evaluations=read_evaluations(workdir, model.weights.step, find_stored_dtype(model.weights.variables)),
        soup="" if soup is None else f"{soup.recipe} average of {len(soup.used)} models",
    )


def describe_dataset(spec: RunSpec) -> str:
    """Returns the name of the dataset of a run, without the folders of the computer that trained it."""
    return _describe_source(spec.data)


def _describe_source(data: DataSpec) -> str:
    if data.source == MIXTURE:
        return "; ".join(
            f"{part.part} (weight {part.weight:g}): {_describe_source(part)}" for part in data.list_parts()
        )
    if data.source == "folder":
        return f"images and captions in a folder named {epath.Path(data.root).name or 'images'}"
    if data.source == "tfds":
        return f"TensorFlow Datasets {data.tfds_name}"
    if data.source in SHARD_SOURCES:
        return f"{data.source} shards in a folder named {epath.Path(data.root).name or 'images'}"
    return f"{data.source} ({data.shapes})" if data.source == "shapes" else data.source


def read_evaluations(workdir: epath.Path, step: int, dtype: str = FLOAT32) -> tuple[EvaluationFacts, ...]:
    """Reads the evaluations of weights on real images, in the order of their file names.

    Args:
        workdir: the workdir.
        step: step of the weights.
        dtype: dtype in which they are stored.
    """
    facts = []
    for path in sorted(workdir.glob("eval_*.json"), key=lambda path: path.name):
        try:
            content = json.loads(path.read_text())
            protocol = content["protocol"]
            intervals = {name: (float(low), float(high)) for name, (low, high) in content["intervals"].items()}
            metrics = {name: float(value) for name, value in content["metrics"].items() if value is not None}
            is_same = content["step"] == step and protocol.get("weights", FLOAT32) == dtype
            if is_same and protocol["image_input"] == "real":
                facts.append(EvaluationFacts(str(content["split"]), metrics, intervals, protocol))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkdirError(
                f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}): delete it, or run evaluate again"
            ) from error
    return tuple(facts)
