"""`config.objective`, `config.optimizer`, `config.train` and `config.mesh`: what is minimised, how, and on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import extensions
from input_pipeline.errors import ConfigError

OPTIMIZERS = ("adamw", "adam", "lion", "sgd", "adafactor")
SCHEDULES = ("cosine", "rsqrt", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """The terms of the loss: cross-entropy of the captions, and what is added to it."""

    label_smoothing: float = 0.1
    # Weight of the loss that brings images and their captions together in a joint embedding; above 0 the model has a
    # text encoder and that embedding, and its images can be found by words.
    contrastive_weight: float = 0.0
    # More terms: label -> {"name": "package.module:Class", ..} (docs/extending.md).
    terms: Mapping[str, Any] = extensions()

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"config.objective.label_smoothing is {self.label_smoothing}; it has to be in [0, 1)")
        if not self.contrastive_weight >= 0:
            raise ConfigError(
                f"config.objective.contrastive_weight is {self.contrastive_weight}; it has to be 0 (for none) or more"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer, its learning rate, and rules for each parameter."""

    name: str = "adamw"  # "adamw", "adam", "lion", "sgd", "adafactor"
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # "cosine", "rsqrt", "linear" or "constant", after a linear warm-up
    warmup_steps: int = 100
    final_fraction: float = 0.0  # of the learning rate, at the last step (cosine and linear)
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 for none
    accumulation: int = 1  # gradients of this many microbatches are summed before an update
    ema: float = 0.0  # decay of the exponential moving average of parameters; 0 for none
    # (pattern, settings): each parameter takes the settings of the one rule whose pattern matches its whole path.
    # lr: multiple of the learning rate, 0 freezes; decay: multiple of weight_decay; from_step: frozen until that step.
    rules: tuple[tuple[str, Mapping[str, float]], ...] = ((".*", {"lr": 1.0, "decay": 1.0, "from_step": 0}),)

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ConfigError(f"optimizer.name is {self.name!r}; it has to be one of {', '.join(OPTIMIZERS)}")
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}; it has to be 0 or more")
        for name in ("b1", "b2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name} is {getattr(self, name)}; it has to be in [0, 1)")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optimizer.schedule is {self.schedule!r}; it has to be one of {', '.join(SCHEDULES)}")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps is {self.warmup_steps}; it has to be 0 or more")
        if not 0 <= self.final_fraction <= 1:
            raise ConfigError(f"optimizer.final_fraction is {self.final_fraction}; it has to be in [0, 1]")
        if self.accumulation < 1:
            raise ConfigError(f"config.optimizer.accumulation is {self.accumulation}; it has to be 1 or more")


@dataclasses.dataclass(frozen=True)
class ProfileSpec:
    """A trace of chosen steps, for TensorBoard; 0 steps for none."""

    start: int = 0
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """Length of the run and what happens in between."""

    epochs: float = 10.0  # passes over the training images; ignored where steps is set
    steps: int = 0
    log_every: int = 50  # steps
    eval_every: int = 0  # steps; 0 for once an epoch
    checkpoint_every: int = 0  # steps; 0 for once an epoch
    best_metric: str = "CIDEr-D"  # of the validation split: the highest value marks the best weights
    patience: int = 0  # evaluations without a better best_metric before the run stops; 0 for never
    eval_images: int = 0  # images of the validation split scored during training; 0 for all
    sample_images: int = 16  # validation images drawn in TensorBoard
    # Pads left out of a step's arithmetic: "auto" (on CPUs), "always" or "never". A step is compiled for each of the
    # few sizes that batches have without pads.
    packing: str = "auto"
    profile: ProfileSpec = ProfileSpec()

    def __post_init__(self):
        if self.steps < 0:
            raise ConfigError(f"config.train.steps is {self.steps}; it has to be 0 (for train.epochs) or more")
        if self.log_every < 1:
            raise ConfigError(f"config.train.log_every is {self.log_every}; it has to be 1 or more")
        if self.packing not in ("auto", "always", "never"):
            raise ConfigError(f'config.train.packing is {self.packing!r}; it must be "auto", "always" or "never"')


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Devices as a (data, model) grid, and which parameters are split over it."""

    data: int = -1  # devices along the batch; -1 for as many as there are
    model: int = 1
    # (pattern, axis names, one per dimension) for parameters that are sharded.
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
