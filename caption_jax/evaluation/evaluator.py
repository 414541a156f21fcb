"""The `Evaluator` base class, its inputs and its results.

An evaluator computes metrics on a split while a model captions it. The built-in evaluators score the captions
(`caption_scores.py`), measure retrieval in the joint embedding (`recall.py`) and write the HTML report
(`report/html_report.py`). More can be added in the config (docs/extending.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

if TYPE_CHECKING:
    from caption_jax.decoding import Decoded
    from caption_jax.evaluation.scored_evaluation import ScoredEvaluation
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.image_encoder import ImageFeatures
    from caption_jax.runs.experiment import Experiment
    from input_pipeline.context import ContextCaptions
    from input_pipeline.records import Split

PyTree = Any
ImageId = str | int


class EvalBatch(NamedTuple):
    """A batch with its features and decoded captions, passed to `Evaluator.outputs` inside the jitted evaluation step.

    Attributes:
        model: the model of the run.
        variables: the variables of the model.
        pixels: normalised images.
        features: features that the decoder attends to, including any context.
        batch: the arrays of the batch, including the reference "tokens" [batch, captions, length].
        decoded: the decoded captions.
        constants: the result of `Evaluator.constants`.
    """

    model: ImageCaptioningModel
    variables: PyTree
    pixels: Float[Array, "batch height width 3"]
    features: ImageFeatures
    batch: Mapping[str, jax.Array]
    decoded: Decoded
    constants: PyTree = ()


@dataclasses.dataclass(frozen=True)
class SplitOutputs:
    """Outputs of the evaluation step, collected over a split.

    Attributes:
        split: the images and their references.
        captions: image id -> decoded caption, in the order of the split; "" for images that could not be read.
        arrays: name -> image id -> row of the array with that name in `Evaluator.outputs`. Padding and images that
            could not be read are omitted.
        reference_metrics: teacher-forced "loss" (nats per token) and "token_accuracy" on the references.
    """

    split: Split
    captions: Mapping[ImageId, str]
    arrays: Mapping[str, Mapping[ImageId, np.ndarray]]
    reference_metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one evaluator.

    Attributes:
        metrics: name -> value over the split, for each name in `Evaluator.metric_names`.
        per_image: name -> image id -> value, for the entries of `images` in `eval_<split>.json`.
        protocol: settings to record in the evaluation protocol.
    """

    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_image: Mapping[str, Mapping[ImageId, float]] = dataclasses.field(default_factory=dict)
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The combined results of all evaluators.

    Attributes:
        metrics: metric name -> value. "loss" and "token_accuracy" are computed on the references with teacher forcing.
            The metrics of `retrieval_scores` are included if the model has a joint embedding. Metrics of the evaluators
            in the config are named `<label>/<name>`.
        captions: image id -> generated caption, in the order of the split; "" for images that could not be read.
        tokens: image id -> decoded token ids, for readable images only.
        log_probs: image id -> summed log-probability of the tokens, for readable images only.
        unreadable: image id -> reason why the image could not be read.
        protocol: the evaluation protocol.
        per_image: metric name -> image id -> value, for evaluators with per-image values.
    """

    metrics: dict[str, float]
    captions: dict[Any, str]
    tokens: dict[Any, Int[np.ndarray, " length"]]
    log_probs: dict[Any, float]
    unreadable: dict[Any, str]
    protocol: dict[str, Any]
    per_image: dict[str, Mapping[Any, float]] = dataclasses.field(default_factory=dict)


class FinalEvaluation(NamedTuple):
    """The evaluation of a run's best weights, passed to `Evaluator.write`.

    Attributes:
        experiment: the run.
        suffix: suffix of the output file names, such as "val" in `report_val.html`.
        scored_evaluation: metrics, captions and protocol.
        split: the images.
        variables: the best weights.
        context: context captions of the images, or None.
        non_default_inputs: labels of modified inputs, such as "blank" (images) or "context_none"; empty by default.
    """

    experiment: Experiment
    suffix: str
    scored_evaluation: ScoredEvaluation
    split: Split
    variables: PyTree
    context: ContextCaptions | None
    non_default_inputs: list[str]


class Evaluator:
    """Base class of evaluators. Subclasses are frozen dataclasses, whose fields are settings.

    All methods are optional. `config.evaluators.<label> = {"name": "package.module:Class", "field": value, ...}` adds
    an evaluator to a run.
    """

    def metric_names(self) -> tuple[str, ...]:
        """Returns the keys of `Result.metrics`. Called before the first evaluation."""
        return ()

    def prepare(self, experiment: Experiment) -> Any:
        """Prepares the state passed to `outputs` and `summarise`, such as compiled functions. Called once per run.

        Raises:
            ConfigError: the run does not meet the requirements of this evaluator.
        """
        return None

    def constants(self, state: Any) -> PyTree:
        """Returns arrays that `outputs` needs in addition to the batch, such as the weights of another model.

        They are copied to all devices once per run. Arrays that `outputs` reads from `state` would be compiled into
        the evaluation step.

        Args:
            state: the result of `prepare`.
        """
        return ()

    def outputs(self, state: Any, batch: EvalBatch) -> dict[str, Float[Array, "batch ..."]]:
        """Computes arrays with a leading batch axis inside the jitted evaluation step.

        Args:
            state: the result of `prepare`.
            batch: the batch, which may contain padding rows.
        """
        return {}

    def summarise(self, state: Any, variables: PyTree, outputs: SplitOutputs) -> Result:
        """Computes the metrics of a split. Called by all processes with identical arguments.

        Args:
            state: the result of `prepare`.
            variables: the variables of the model.
            outputs: the captions of the whole split, and the arrays returned by `outputs`.
        """
        return Result()

    def write(self, final: FinalEvaluation) -> None:
        """Writes additional files to the workdir. Called by one process, after training or in evaluate mode."""
