"""`config.objective`, `config.optimizer`, `config.train` and `config.mesh`: what is minimised, how, and on what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import extensions
from caption_jax.specs.rule_syntax import check_partition_rule, parse_parameter_rule
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import above, at_least, check_fields, interval, number, one_of

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
        check_fields(
            self,
            "config.objective",
            label_smoothing=interval("[0, 1)", "0 for none"),
            contrastive_weight=at_least(0, "for none"),
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
        check_fields(
            self,
            "config.optimizer",
            name=one_of(*OPTIMIZERS),
            learning_rate=at_least(0),
            schedule=one_of(*SCHEDULES),
            warmup_steps=at_least(0, "for none"),
            final_fraction=interval("[0, 1]"),
            b1=interval("[0, 1)"),
            b2=interval("[0, 1)"),
            weight_decay=at_least(0, "for none"),
            clip_norm=at_least(0, "for none"),
            accumulation=at_least(1),
            ema=interval("[0, 1)", "0 for none"),
        )
        for rule in self.rules:
            parse_parameter_rule(rule)


@dataclasses.dataclass(frozen=True)
class ProfileSpec:
    """A trace of chosen steps, for TensorBoard; 0 steps for none."""

    start: int = 0
    steps: int = 0

    def __post_init__(self):
        check_fields(self, "config.train.profile", start=at_least(0), steps=at_least(0, "for none"))


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
        check_fields(
            self,
            "config.train",
            epochs=above(0),
            steps=at_least(0, "for train.epochs"),
            log_every=at_least(1),
            eval_every=at_least(0, "for once an epoch"),
            checkpoint_every=at_least(0, "for once an epoch"),
            patience=at_least(0, "for never"),
            eval_images=at_least(0, "for all"),
            sample_images=at_least(0, "for none"),
            packing=one_of("auto", "always", "never"),
        )


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Devices as a (data, model) grid, and which parameters are split over it."""

    data: int = -1  # devices along the batch; -1 for as many as there are
    model: int = 1
    # (pattern, axis names, one per dimension) for parameters that are sharded.
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __post_init__(self):
        devices = number("a number of devices, or -1 for as many as there are", lambda count: count >= 1 or count == -1)
        check_fields(self, "config.mesh", data=devices, model=devices)
        if self.data == self.model == -1:
            raise ConfigError(
                "config.mesh.data and config.mesh.model are both -1; only one of them can be as many as there are"
            )
        for rule in self.rules:
            check_partition_rule(rule)
