"""Config values that are fitted to the data: resolved when a run starts, and read from its workdir afterwards."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from caption_jax.specs.conversion import differences
from caption_jax.specs.run_spec import RunSpec
from input_pipeline.errors import ConfigError

EVALUATIONS = 20  # of a run, unless an epoch is longer than a twentieth of it

_EPOCHS = 12
_MIN_STEPS = 600  # fewer updates are not enough to learn the words of the captions, however few images there are
_WARMUP_FRACTION, _MAX_WARMUP = 0.1, 1000
_AVERAGED_FRACTION, _MAX_EMA = 0.15, 0.9999
_MAX_LOG_EVERY = 50
_TPU_LANES = 128
_COVERED_CAPTIONS, _MAX_LENGTH = 0.99, 128  # fraction of captions that are not truncated, and the limit in tokens

# Keys whose value may be fitted to the data, with the value that requests it.
_FITTED = {
    "train.log_every": 0,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "optimizer.warmup_steps": -1,
    "optimizer.ema": -1.0,
    "data.max_length": 0,
    "decode.max_length": 0,
}


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetFacts:
    """Properties of the data and the devices that the resolved spec depends on.

    Attributes:
        train_images: number of images in the training split.
        caption_lengths: number of tokens of each training caption, including <s> and </s>; empty if unknown.
        batch_multiple: divisor of the batch size: number of devices times number of microbatches.
        device_kind: kind of the devices, such as "TPU v5 lite", as in JAX.
    """

    train_images: int
    caption_lengths: Int[np.ndarray, " captions"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    batch_multiple: int = 1
    device_kind: str = "cpu"


def resolve(spec: RunSpec, facts: DatasetFacts) -> RunSpec:
    """Replaces values that request a fit to the data with concrete ones.

    - `data.batch_size` does not exceed the number of training images.
    - `train.steps`: `train.epochs` epochs of full batches. If both are 0, 12 epochs, and at least 600 steps.
    - `optimizer.warmup_steps`: a tenth of the steps, at most 1,000.
    - `optimizer.ema`: the decay that averages over 15 % of the steps.
    - `train.eval_every` and `train.checkpoint_every`: an epoch, and at least a twentieth of the steps.
    - `train.log_every`: a hundredth of the steps, at most 50.
    - `data.max_length`: long enough for 99 % of the training captions, at most 128. `decode.max_length`: the same.

    Raises:
        ConfigError: `data.max_length` truncates all captions.
    """
    batch_size = _fit_batch_size(spec, facts)
    steps_per_epoch = max(facts.train_images // batch_size, 1)
    steps = spec.train.steps
    if not steps:
        epochs = spec.train.epochs or _EPOCHS
        steps = max(round(epochs * steps_per_epoch), 1 if spec.train.epochs else _MIN_STEPS)
    interval = max(steps_per_epoch, math.ceil(steps / EVALUATIONS))
    max_length = spec.data.max_length or _fit_max_length(facts)
    fitted = {
        "train.log_every": min(max(round(steps / 100), 1), _MAX_LOG_EVERY),
        "train.eval_every": interval,
        "train.checkpoint_every": interval,
        "optimizer.warmup_steps": min(round(_WARMUP_FRACTION * steps), _MAX_WARMUP),
        "optimizer.ema": min(round(1 - 1 / max(_AVERAGED_FRACTION * steps, 1), 4), _MAX_EMA),
        "data.max_length": max_length,
        "decode.max_length": max_length,
    }
    values = {key: value for key, value in fitted.items() if _get(spec, key) == _FITTED[key]}
    resolved = replace_values(spec, {**values, "train.steps": steps, "data.batch_size": batch_size})
    _check_lengths(resolved, facts)
    return resolved


def use_stored_values(spec: RunSpec, configured: RunSpec, resolved: RunSpec) -> RunSpec:
    """Replaces values that request a fit to the data with those that a run was started with.

    Args:
        spec: the spec with which the run is resumed or evaluated.
        configured: the stored spec of the run, before its values were fitted.
        resolved: the stored spec of the run.

    Returns:
        `spec` with stored values. The number of steps is still 0 if `spec` states another number of epochs.
    """
    stored = {key: _get(resolved, key) for key, request in _FITTED.items() if _get(spec, key) == request}
    if spec.data.batch_size == configured.data.batch_size:
        stored["data.batch_size"] = resolved.data.batch_size
    if not spec.train.steps and spec.train.epochs in (0, configured.train.epochs):
        stored |= {"train.steps": resolved.train.steps, "train.epochs": configured.train.epochs}
    return replace_values(spec, stored)


def describe_fit(configured: RunSpec, resolved: RunSpec) -> str:
    """Lists the values that were fitted to the data, such as "train.steps=600, optimizer.warmup_steps=60"."""
    changes = differences(configured, resolved)
    return ", ".join(f"{key}={new}" for key, (_, new) in changes.items())


def find_contradictions(spec: RunSpec, facts: DatasetFacts) -> list[str]:
    """Returns a message for each value of a resolved spec that is probably a mistake; each names the key."""
    train, optimizer = spec.train, spec.optimizer
    messages = []
    if optimizer.warmup_steps >= train.steps:
        messages.append(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps}: the run has only {train.steps} steps, so the "
            "learning rate does not reach its maximum. Set it to -1 for a tenth of the steps"
        )
    if optimizer.ema and 1 / (1 - optimizer.ema) > train.steps:
        messages.append(
            f"config.optimizer.ema={optimizer.ema}: the weights are averaged over about "
            f"{1 / (1 - optimizer.ema):.0f} steps, but the run has only {train.steps}. Set it to -1 for an average "
            "over 15 % of the steps"
        )
    for key in ("log_every", "eval_every", "checkpoint_every"):
        if getattr(train, key) > train.steps:
            messages.append(
                f"config.train.{key}={getattr(train, key)}: the run has only {train.steps} steps. Set it to 0 for an "
                "interval that fits the run"
            )
    images = spec.data.batch_size // facts.batch_multiple
    if facts.device_kind.startswith("TPU") and images % _TPU_LANES:
        messages.append(
            f"config.data.batch_size={spec.data.batch_size}: each TPU chip processes {images} images at a time, and "
            f"its vectors have {_TPU_LANES} elements, most of which are images. Set it to a multiple of "
            f"{_TPU_LANES * facts.batch_multiple:,}"
        )
    truncated = count_truncated(spec, facts)
    if truncated > (1 - _COVERED_CAPTIONS) * max(len(facts.caption_lengths), 1):
        messages.append(
            f"config.data.max_length={spec.data.max_length} truncates {truncated:,} of "
            f"{len(facts.caption_lengths):,} training captions; the longest has {facts.caption_lengths.max()} tokens. "
            "Set config.data.max_length and config.decode.max_length to 0 to fit them to the captions"
        )
    return messages


def count_truncated(spec: RunSpec, facts: DatasetFacts) -> int:
    """Returns the number of training captions that `data.max_length` truncates."""
    return int((facts.caption_lengths > spec.data.max_length).sum())


def replace_values(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """Returns a copy of a spec with other values, by key of a section, such as "train.steps"."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    changed = {name: dataclasses.replace(getattr(spec, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(spec, **changed)


def _fit_batch_size(spec: RunSpec, facts: DatasetFacts) -> int:
    if spec.data.batch_size <= facts.train_images:
        return spec.data.batch_size
    multiple = math.lcm(facts.batch_multiple, spec.model.encoder.batch_multiple)
    if multiple > facts.train_images:
        multiple = facts.batch_multiple
    return max(facts.train_images // multiple, 1) * multiple


def _fit_max_length(facts: DatasetFacts) -> int:
    return min(_covering_length(facts), _MAX_LENGTH) if len(facts.caption_lengths) else _MAX_LENGTH


def _covering_length(facts: DatasetFacts) -> int:
    return int(np.quantile(facts.caption_lengths, _COVERED_CAPTIONS, method="higher"))


def _check_lengths(spec: RunSpec, facts: DatasetFacts) -> None:
    """A truncated caption has no </s>, so the model cannot learn to stop if all captions are truncated."""
    if len(facts.caption_lengths) and count_truncated(spec, facts) == len(facts.caption_lengths):
        raise ConfigError(
            f"config.data.max_length={spec.data.max_length} truncates all training captions, so the model could not "
            f"learn where captions end: set it to {_covering_length(facts)}, which covers 99 % of them"
        )


def _get(spec: RunSpec, key: str) -> float:
    section, name = key.split(".")
    return getattr(getattr(spec, section), name)
