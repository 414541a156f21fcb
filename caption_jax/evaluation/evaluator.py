"""Scoring a split: decode every image once, compare with its references."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from caption_jax.errors import ConfigError
from caption_jax.evaluation.eval_step import make_eval_step
from caption_jax.evaluation.recall import TextVectors, split_retrieval
from caption_jax.metrics import protocol, score
from caption_jax.parameters.sharding import batch_sharding, put_batch, replicated
from caption_jax.retrieval.context_captions import context_protocol, open_context, usual_kind
from caption_jax.runs.experiment import Experiment
from caption_jax.specs import as_mapping
from input_pipeline.batches import eval_batches
from input_pipeline.records import Split

PyTree = Any


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: metric name -> value; "loss" and "token_accuracy" are those of the references, teacher forced. Those
            of `retrieval_scores` are there where images and texts share a space.
        captions: image id -> generated caption, "" where the image could not be read; in the order of the split.
        tokens: image id -> the decoded token ids; of images that could be read, as for `log_probs`.
        log_probs: image id -> summed log-probability of its tokens.
        unreadable: image id -> why it could not be captioned.
        protocol: how the numbers came about.
    """

    metrics: dict[str, float]
    captions: dict[Any, str]
    tokens: dict[Any, Int[np.ndarray, " length"]]
    log_probs: dict[Any, float]
    unreadable: dict[Any, str]
    protocol: dict[str, Any]


class Evaluator:
    """Evaluates variables on one split; compiled once, used as often as wanted.

    Args:
        experiment: the run.
        split_name: "train", "val", "test", or whatever the data has.
        limit: score only so many images, evenly spread; 0 for all.
        images: "real", or for a look at what the captions owe to the image: "blank" (mid-grey) or "shuffled" (each
            image's caption judged against the references of another).
        context: see `open_context`; "" for the kind that the run is trained with.

    Attributes:
        split: the images.
        context: what stands beside them; None for nothing.
        unusual: what images and context are called where they are not the usual ones.
    """

    def __init__(
        self, experiment: Experiment, split_name: str, limit: int = 0, images: str = "real", context: str = ""
    ):
        if images not in ("real", "blank", "shuffled"):
            raise ConfigError(f'images is {images!r}; it must be "real", "blank" or "shuffled"')
        self._experiment, self._split_name, self._images = experiment, split_name, images
        self.split = _spread(experiment.split(split_name), limit)
        usual = usual_kind(experiment)
        self._context_kind = context or usual
        self.context = open_context(experiment, split_name, self._context_kind)
        self.unusual = [] if images == "real" else [images]
        self.unusual += [] if self._context_kind == usual else [f"context_{context}"]
        mesh, description = experiment.mesh, experiment.description
        step = make_eval_step(experiment.model(), description)
        self._texts = TextVectors(experiment) if description.has_shared_space else None
        self._step: Callable = jax.jit(step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))

    def __call__(self, variables: PyTree, step: int) -> Evaluation:
        """Decodes and scores every image of the split; the last batch is padded and masked, never dropped."""
        started = time.time()
        description = self._experiment.description
        batches = eval_batches(
            self.split,
            description.preprocessing,
            description.vocabulary,
            self._experiment.spec.data,
            context=self.context,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        tokens: dict[Any, np.ndarray] = {}
        log_probs: dict[Any, float] = {}
        vectors: dict[Any, np.ndarray] = {}
        sums = np.zeros(3)
        for batch in batches:
            if self._images == "blank":
                batch = {**batch, "image": np.full_like(batch["image"], 128)}
            out = jax.device_get(self._step(variables, put_batch(batch, self._experiment.mesh)))
            sums += [out["loss_sum"], out["correct_sum"], out["weight_sum"]]
            for row in np.flatnonzero(out["mask"]):
                image_id = self.split[int(out["index"][row])].image_id
                tokens[image_id] = out["tokens"][row]
                log_probs[image_id] = float(out["log_prob"][row])
                if self._texts is not None:
                    vectors[image_id] = out["vector"][row]
        if self._images == "shuffled":
            tokens, log_probs, vectors = _moved_on(tokens), _moved_on(log_probs), _moved_on(vectors)
        loss, correct, weight = sums
        measured = {"loss": float(loss / max(weight, 1)), "token_accuracy": float(correct / max(weight, 1))}
        if self._texts is not None and self.split.captions:
            measured |= split_retrieval(self.split, vectors, self._texts(variables, self.split.captions))
        return self._judge(tokens, log_probs, measured, step, time.time() - started, dict(batches.problems))

    def over_all(self) -> Evaluator:
        """This evaluator over the whole split; they share what is compiled."""
        whole = copy.copy(self)
        whole.split = self._experiment.split(self._split_name)
        return whole

    def _judge(
        self, tokens: dict, log_probs: dict, measured: dict, step: int, seconds: float, problems: dict
    ) -> Evaluation:
        references, mesh = self.split.references, self._experiment.mesh
        decode = self._experiment.description.vocabulary.decode
        missing = [record for record in self.split if record.image_id not in tokens]
        unreadable = {record.image_id: problems.get(record.name, "read by another process") for record in missing}
        hypotheses = {image_id: decode(tokens.get(image_id, ())) for image_id in references}
        metrics = score(references, hypotheses) | measured
        how = {
            "split": self._split_name,
            "images": len(references),
            "captions": len(self.split.captions),
            "unreadable_images": len(unreadable),
            "unreadable": {str(image_id): reason for image_id, reason in unreadable.items()},
            "image_input": self._images,
            **context_protocol(self._experiment, self._context_kind),
            **protocol(),
            "decode": as_mapping(self._experiment.spec.decode),
            "step": step,
            "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
            "wall_seconds": round(seconds, 1),
        }
        return Evaluation(metrics, hypotheses, tokens, log_probs, unreadable, how)


def _moved_on(by_image: dict[Any, Any]) -> dict[Any, Any]:
    """Gives each image what the next one has."""
    values = list(by_image.values())
    return dict(zip(by_image, [*values[1:], *values[:1]], strict=True))


def _spread(split: Split, limit: int) -> Split:
    """At most `limit` records of the split, evenly spread over it."""
    if not limit or limit >= len(split):
        return split
    chosen = np.linspace(0, len(split) - 1, limit).round().astype(int)
    return Split(split.name, [split.records[i] for i in chosen])
