"""Evaluates a split: captions every image once and passes the outputs to all evaluators."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from caption_jax.errors import ConfigError
from caption_jax.evaluation.caption_scores import CaptionScores
from caption_jax.evaluation.eval_step import make_eval_step
from caption_jax.evaluation.evaluator import Evaluation, Evaluator, FinalEvaluation, Result, SplitOutputs
from caption_jax.evaluation.recall import RetrievalRecall
from caption_jax.evaluation.report.html_report import HtmlReport
from caption_jax.inference.consensus_setup import make_consensus
from caption_jax.inference.ensemble import load_ensemble
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.parameters.stored_dtypes import FLOAT32, find_stored_dtype, restore
from caption_jax.retrieval.context_captions import context_protocol, default_kind, open_context
from caption_jax.runs.experiment import Experiment
from caption_jax.runs.soup_record import read_record
from caption_jax.runtime.stopping import EvaluationStoppedError
from caption_jax.specs import as_mapping
from caption_jax.specs.extensions import NAME, import_path
from input_pipeline.batches import Batch, eval_batches
from input_pipeline.prefetch import prefetch_to_device
from input_pipeline.records import Split

PyTree = Any


class PreparedEvaluator(NamedTuple):
    """An evaluator with its prepared state and its label in the config ("" for built-in evaluators)."""

    label: str
    evaluator: Evaluator
    state: Any

    def prefix_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Prefixes the keys of `values` with the label."""
        return {f"{self.label}/{name}" if self.label else name: value for name, value in values.items()}


@dataclass
class _CollectedOutputs:
    """Outputs of the evaluation step by image id."""

    tokens: dict[Any, np.ndarray] = field(default_factory=dict)
    log_probs: dict[Any, float] = field(default_factory=dict)
    arrays: list[dict[str, dict[Any, np.ndarray]]] = field(default_factory=list)  # one dictionary per evaluator
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))  # loss, correct tokens, all tokens

    def add(self, split: Split, outputs: dict[str, PyTree]) -> None:
        """Adds the outputs of a batch, except those of padding and unreadable images."""
        self.sums += [outputs["loss_sum"], outputs["correct_sum"], outputs["weight_sum"]]
        if not self.arrays:
            self.arrays = [{name: {} for name in arrays} for arrays in outputs["evaluators"]]
        for row in np.flatnonzero(outputs["mask"]):
            image_id = split[int(outputs["index"][row])].image_id
            self.tokens[image_id] = outputs["tokens"][row]
            self.log_probs[image_id] = float(outputs["log_prob"][row])
            for collected, arrays in zip(self.arrays, outputs["evaluators"], strict=True):
                for name, array in arrays.items():
                    collected[name][image_id] = array[row]

    def rotated(self) -> _CollectedOutputs:
        """Returns a copy that assigns to each image the outputs of the next image."""
        arrays = [{name: _rotate(rows) for name, rows in per_evaluator.items()} for per_evaluator in self.arrays]
        return _CollectedOutputs(_rotate(self.tokens), _rotate(self.log_probs), arrays, self.sums)

    def reference_metrics(self) -> dict[str, float]:
        """Returns the teacher-forced loss and token accuracy on the references."""
        loss, correct, weight = self.sums
        return {"loss": float(loss / max(weight, 1)), "token_accuracy": float(correct / max(weight, 1))}


class SplitEvaluator:
    """Evaluates variables on one split. The evaluation step is compiled once, on the first call.

    Args:
        experiment: the run.
        split_name: name of the split, such as "train", "val" or "test".
        limit: maximum number of images, selected at even intervals; 0 for all.
        image_input: "real", or an ablation of the image input: "blank" (mid-grey images) or "shuffled" (the caption of
            each image is scored against the references of another image).
        context: see `open_context`; "" for the kind of context used in training.
        data: protocol entries that describe the dataset; None for the dataset of the run.
        weights: dtype in which the weights of the other models of an ensemble are stored; see `read_model`.

    Attributes:
        split: the images.
        context: context captions of the images, or None.
        non_default_inputs: labels of `image_input` and `context` that differ from the defaults.

    Raises:
        ConfigError: an argument is invalid, or an evaluator or ensemble of the config is not compatible with the run.
    """

    def __init__(
        self,
        experiment: Experiment,
        split_name: str,
        limit: int = 0,
        image_input: str = "real",
        context: str = "",
        data: Mapping[str, str] | None = None,
        weights: str = FLOAT32,
    ):
        if image_input not in ("real", "blank", "shuffled"):
            raise ConfigError(f'image_input is {image_input!r}; it must be "real", "blank" or "shuffled"')
        self._experiment, self._split_name, self._image_input = experiment, split_name, image_input
        self._data = data or {}
        self.split = _subsample(experiment.split(split_name), limit)
        default_context_kind = default_kind(experiment)
        self._context_kind = context or default_context_kind
        self.context = open_context(experiment, split_name, self._context_kind)
        self.non_default_inputs = [] if image_input == "real" else [image_input]
        self.non_default_inputs += [] if self._context_kind == default_context_kind else [f"context_{context}"]
        self._evaluators = prepare_evaluators(experiment)
        mesh, decode_spec = experiment.mesh, experiment.spec.decode
        constants = [prepared.evaluator.constants(prepared.state) for prepared in self._evaluators]
        self._constants = jax.device_put(constants, replicated(mesh))
        self._ensemble = load_ensemble(
            decode_spec.ensemble, experiment.description, str(experiment.workdir), replicated(mesh), weights
        )
        consensus = None
        if decode_spec.consensus_weight:
            train = experiment.splits.get("train")
            consensus = make_consensus(decode_spec, experiment.description, experiment.workdir, train)
        step = make_eval_step(
            experiment.model(),
            experiment.description,
            [(prepared.evaluator, prepared.state) for prepared in self._evaluators],
            shards=mesh.shape["data"],
            others=self._ensemble.descriptions,
            consensus=consensus,
        )
        jitted = jax.jit(step, in_shardings=(None, batch_sharding(mesh), None, None), out_shardings=replicated(mesh))
        self._step: Callable = experiment.display.around_first_call(jitted, "compiling the evaluation step")

    def check_metric(self, name: str) -> None:
        """Raises ConfigError, listing the available metrics, if no evaluator reports the metric `name`."""
        names = [
            metric_name
            for prepared in self._evaluators
            for metric_name in prepared.prefix_names(dict.fromkeys(prepared.evaluator.metric_names()))
        ]
        if name not in names:
            raise ConfigError(f"config.train.best_metric is {name!r}; it must be one of {', '.join(names)}")

    def __call__(self, variables: PyTree, step: int, stop_requested: Callable[[], bool] = lambda: False) -> Evaluation:
        """Captions and scores every image of the split. The last batch is padded and masked instead of dropped.

        Args:
            variables: the weights, stored in any dtype (`stored_dtypes`).
            step: the step of the weights.
            stop_requested: called after each batch; whether to abandon the evaluation.

        Raises:
            EvaluationStoppedError: the evaluation was abandoned.
        """
        start_time = time.time()
        description = self._experiment.description
        data = self._experiment.spec.data
        batches = eval_batches(
            self.split,
            description.preprocessing,
            description.vocabulary,
            data,
            context=self.context,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        collected = _CollectedOutputs()
        bar = self._experiment.display.phase(f"captioning {self._split_name}", len(self.split), "images")
        with prefetch_to_device(batches, self._put_on_devices, data.prefetch) as prefetched, bar as phase:
            others = self._ensemble.variables, self._constants
            steps = (self._step(variables, batch, *others) for batch in prefetched)
            for outputs in _fetch_late(steps):
                collected.add(self.split, outputs)
                phase.advance(data.eval_batch_size)
                if stop_requested():
                    raise EvaluationStoppedError
        if self._image_input == "shuffled":
            collected = collected.rotated()
        with self._experiment.display.phase("scoring the captions"):
            return self._summarise(collected, variables, step, start_time, dict(batches.problems))

    def on_full_split(self) -> SplitEvaluator:
        """Returns an evaluator of the whole split, without `limit`, that shares the compiled step."""
        evaluator = copy.copy(self)
        evaluator.split = self._experiment.split(self._split_name)
        return evaluator

    def write(self, final: FinalEvaluation) -> None:
        """Calls `Evaluator.write` of every evaluator."""
        for prepared in self._evaluators:
            prepared.evaluator.write(final)

    def _put_on_devices(self, batch: Batch) -> dict[str, jax.Array]:
        if self._image_input == "blank":
            batch = {**batch, "image": np.full_like(batch["image"], 128)}
        return put_batch(batch, self._experiment.mesh)

    def _summarise(
        self, collected: _CollectedOutputs, variables: PyTree, step: int, start_time: float, problems: dict
    ) -> Evaluation:
        decode, tokens = self._experiment.description.vocabulary.decode, collected.tokens
        unreadable = {
            record.image_id: problems.get(record.name, "could not be read by another process; see its log")
            for record in self.split
            if record.image_id not in tokens
        }
        if len(unreadable) == len(self.split):
            logging.warning(
                "none of the %d images of the split %s could be read: the scores are those of empty captions",
                *(len(self.split), self._split_name),
            )
        captions = {image_id: decode(tokens.get(image_id, ())) for image_id in self.split.image_ids}
        reference_metrics = collected.reference_metrics()
        metrics: dict[str, float] = {}
        per_image: dict[str, Mapping[Any, float]] = {}
        results: list[tuple[PreparedEvaluator, Result]] = []
        for index, prepared in enumerate(self._evaluators):
            arrays = collected.arrays[index] if collected.arrays else {}
            outputs = SplitOutputs(self.split, captions, arrays, reference_metrics)
            result = prepared.evaluator.summarise(prepared.state, restore(variables), outputs)
            metrics |= prepared.prefix_names(result.metrics)
            per_image |= prepared.prefix_names(result.per_image)
            results.append((prepared, result))
        protocol = self._make_protocol(results, unreadable, step, time.time() - start_time)
        if (dtype := find_stored_dtype(variables)) != FLOAT32:
            protocol["weights"] = dtype
        return Evaluation(metrics, captions, tokens, collected.log_probs, unreadable, protocol, per_image)

    def _make_protocol(
        self, results: list[tuple[PreparedEvaluator, Result]], unreadable: dict, step: int, seconds: float
    ) -> dict[str, Any]:
        mesh = self._experiment.mesh
        built_in_protocols = [result.protocol for prepared, result in results if not prepared.label]
        labelled = {
            prepared.label: {
                NAME: import_path(type(prepared.evaluator)),
                **as_mapping(prepared.evaluator),
                **result.protocol,
            }
            for prepared, result in results
            if prepared.label
        }
        return {
            "split": self._split_name,
            **self._data,
            "images": len(self.split),
            "captions": len(self.split.captions),
            "unreadable_images": len(unreadable),
            "unreadable": {str(image_id): reason for image_id, reason in unreadable.items()},
            "image_input": self._image_input,
            **context_protocol(self._experiment, self._context_kind),
            **{key: value for protocol in built_in_protocols for key, value in protocol.items()},
            **({"evaluators": labelled} if labelled else {}),
            "decode": as_mapping(self._experiment.spec.decode),
            "step": step,
            **({"soup": str(record)} if (record := read_record(self._experiment.workdir)) else {}),
            **({"ensemble_steps": self._ensemble.steps} if self._ensemble else {}),
            "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
            "wall_seconds": round(seconds, 1),
        }


def prepare_evaluators(experiment: Experiment) -> list[PreparedEvaluator]:
    """Prepares the built-in evaluators that apply to the run, followed by the evaluators in `config.evaluators`.

    Raises:
        ConfigError: an entry of `config.evaluators` is not an evaluator, or is not compatible with the run.
    """
    built_in: list[Evaluator] = [CaptionScores(experiment.spec.metrics.tokenizer)]
    if experiment.description.has_joint_embedding:
        built_in.append(RetrievalRecall())
    evaluators = [("", evaluator) for evaluator in (*built_in, HtmlReport())]
    for label, evaluator in experiment.spec.evaluators.items():
        if not isinstance(evaluator, Evaluator):
            raise ConfigError(
                f"config.evaluators.{label}.name={import_path(type(evaluator))} is not an evaluator: it must be a "
                f"subclass of {import_path(Evaluator)}"
            )
        evaluators.append((label, evaluator))
    return [PreparedEvaluator(label, evaluator, evaluator.prepare(experiment)) for label, evaluator in evaluators]


def _fetch_late(outputs: Iterable[PyTree]) -> Iterator[PyTree]:
    """Fetches the outputs of each batch after the next batch is dispatched, so that the devices never wait."""
    previous = None
    for current in outputs:
        if previous is not None:
            yield jax.device_get(previous)
        previous = current
    if previous is not None:
        yield jax.device_get(previous)


def _rotate(per_image: dict[Any, Any]) -> dict[Any, Any]:
    """Assigns to each image the value of the next image."""
    values = list(per_image.values())
    return dict(zip(per_image, [*values[1:], *values[:1]], strict=True))


def _subsample(split: Split, limit: int) -> Split:
    """Selects at most `limit` records at even intervals."""
    if not limit or limit >= len(split):
        return split
    indices = np.linspace(0, len(split) - 1, limit).round().astype(int)
    return Split(split.name, [split.records[i] for i in indices])
