"""What every evaluator is: the base class, what it reads of a split, and what it gives back.

An evaluator looks at a split while a model captions it. The built-in ones score the captions (`caption_scores.py`),
measure retrieval in the joint embedding (`recall.py`) and write the HTML report (`report/html_report.py`); a config
names more of them (docs/extending.md).
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
    from caption_jax.evaluation.assessment import Assessment
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.image_encoder import ImageFeatures
    from caption_jax.runs.experiment import Experiment
    from input_pipeline.context import ContextCaptions
    from input_pipeline.records import Split

PyTree = Any
ImageId = str | int


class EvalBatch(NamedTuple):
    """A batch inside the jitted evaluation step.

    Attributes:
        model: the captioner.
        variables: its variables.
        pixels: normalised images.
        features: of the images, context included, as the decoder attends to them.
        batch: the arrays of the batch, "tokens" [batch, captions, length] of the references among them.
        decoded: the captions of the images.
    """

    model: ImageCaptioningModel
    variables: PyTree
    pixels: Float[Array, "batch height width 3"]
    features: ImageFeatures
    batch: Mapping[str, jax.Array]
    decoded: Decoded


@dataclasses.dataclass(frozen=True)
class SplitOutputs:
    """What the evaluation step gave for a whole split.

    Attributes:
        split: the images and their references.
        captions: image id -> decoded caption, in the order of the split; "" where the image could not be read.
        arrays: name -> image id -> the image's row of what `Evaluator.outputs` returned under that name. Images that
            could not be read have none; the padding of the last batch is left out.
        reference_metrics: "loss", nats per token of the references, and "token_accuracy", both teacher forced.
    """

    split: Split
    captions: Mapping[ImageId, str]
    arrays: Mapping[str, Mapping[ImageId, np.ndarray]]
    reference_metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluator found.

    Attributes:
        metrics: name -> value over the split, one for each of `Evaluator.metric_names`.
        per_image: name -> image id -> value, for the rows of `eval_<split>.json`.
        protocol: how the numbers came about.
    """

    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    per_image: Mapping[str, Mapping[ImageId, float]] = dataclasses.field(default_factory=dict)
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What all evaluators found.

    Attributes:
        metrics: metric name -> value; "loss" and "token_accuracy" are those of the references, teacher forced. Those
            of `retrieval_scores` are there where images and texts share a space. Metrics of an evaluator that the
            config names are called `<label>/<name>`.
        captions: image id -> generated caption, "" where the image could not be read; in the order of the split.
        tokens: image id -> the decoded token ids; of images that could be read, as for `log_probs`.
        log_probs: image id -> summed log-probability of its tokens.
        unreadable: image id -> why it could not be captioned.
        protocol: how the numbers came about.
        per_image: metric name -> image id -> value, of evaluators that have values per image.
    """

    metrics: dict[str, float]
    captions: dict[Any, str]
    tokens: dict[Any, Int[np.ndarray, " length"]]
    log_probs: dict[Any, float]
    unreadable: dict[Any, str]
    protocol: dict[str, Any]
    per_image: dict[str, Mapping[Any, float]] = dataclasses.field(default_factory=dict)


class FinalEvaluation(NamedTuple):
    """What evaluators may write about once the best weights of a run have been evaluated.

    Attributes:
        experiment: the run.
        suffix: of the names of the files, such as "val" in `report_val.html`.
        assessment: metrics, captions and protocol.
        split: the images.
        variables: the best weights.
        context: the captions that the model reads with each image; None for none.
        unusual: what images and context are called where they are not the usual ones.
    """

    experiment: Experiment
    suffix: str
    assessment: Assessment
    split: Split
    variables: PyTree
    context: ContextCaptions | None
    unusual: list[str]


class Evaluator:
    """Base class: an evaluator overrides what it needs, and is a frozen dataclass whose fields are its settings.

    `config.evaluators.<label> = {"name": "package.module:Class", "field": value, ...}` adds one to a run.
    """

    def metric_names(self) -> tuple[str, ...]:
        """The keys of `Result.metrics`, known before anything is evaluated."""
        return ()

    def prepare(self, experiment: Experiment) -> Any:
        """What the methods below need of a run, made once: compiled functions, settings of the data.

        Raises:
            ConfigError: the run has not what this evaluator needs; the message says what to change.
        """
        return None

    def outputs(self, state: Any, batch: EvalBatch) -> dict[str, Float[Array, "batch ..."]]:
        """Arrays with a leading batch axis, computed inside the jitted evaluation step.

        Args:
            state: from `prepare`.
            batch: of images; some of its rows may be padding.
        """
        return {}

    def summarise(self, state: Any, variables: PyTree, outputs: SplitOutputs) -> Result:
        """The metrics of a split. All processes call it, with equal arguments.

        Args:
            state: from `prepare`.
            variables: the model's.
            outputs: captions of the whole split, and what `outputs` gave.
        """
        return Result()

    def write(self, final: FinalEvaluation) -> None:
        """Writes files of its own into the workdir; one process calls it, at the end of a run or in mode evaluate."""
