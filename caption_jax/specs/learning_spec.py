"""`config.objective`, `config.optimizer`, `config.train` and `config.mesh`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caption_jax.specs.extensions import extensions_field
from caption_jax.specs.rule_syntax import check_partition_rule, parse_parameter_rule
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import at_least, check_fields, fitted_or, interval, number, one_of

OPTIMIZERS = ("adamw", "adam", "lion", "sgd", "adafactor")
SCHEDULES = ("cosine", "rsqrt", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """Loss terms: cross-entropy of the captions, plus optional terms."""

    label_smoothing: float = 0.1
    # Weight of the cross-entropy of the captions; 0 to only report it, for a run that trains on other terms.
    caption_weight: float = 1.0
    # Weight of the contrastive loss between images and captions. If positive, the model has a text encoder and a joint
    # embedding, which enables text-to-image search.
    contrastive_weight: float = 0.0
    # Additional terms: label -> {"name": "package.module:Class", ..} (docs/extending.md).
    terms: Mapping[str, Any] = extensions_field()

    def __post_init__(self):
        check_fields(
            self,
            "config.objective",
            label_smoothing=interval("[0, 1)", "0 for none"),
            caption_weight=at_least(0, "for none"),
            contrastive_weight=at_least(0, "for none"),
        )


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """Optimizer, learning rate schedule and per-parameter rules."""

    name: str = "adamw"  # "adamw", "adam", "lion", "sgd", "adafactor"
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # "cosine", "rsqrt", "linear" or "constant", after a linear warm-up
    warmup_steps: int = -1  # 0 for none; -1 for a tenth of the steps, at most 1,000
    final_fraction: float = 0.0  # final learning rate as a fraction of learning_rate (cosine and linear)
    b1: float = 0.9
    b2: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 for none
    grad_accum_steps: int = 1  # microbatches per update (gradient accumulation)
    # Decay of the exponential moving average of parameters: 0 for none, -1 for an average over 15 % of the steps.
    ema: float = 0.0
    # (pattern, settings): the settings apply to parameters whose full path matches the pattern. Each parameter
    # must match exactly one rule. lr: multiplier of the learning rate, 0 to freeze; decay: multiplier of weight_decay;
    # from_step: step until which the parameters are frozen.
    rules: tuple[tuple[str, Mapping[str, float]], ...] = ((".*", {"lr": 1.0, "decay": 1.0, "from_step": 0}),)

    def __post_init__(self):
        check_fields(
            self,
            "config.optimizer",
            name=one_of(*OPTIMIZERS),
            learning_rate=at_least(0),
            schedule=one_of(*SCHEDULES),
            warmup_steps=at_least(-1, "for a tenth of the steps"),
            final_fraction=interval("[0, 1]"),
            b1=interval("[0, 1)"),
            b2=interval("[0, 1)"),
            weight_decay=at_least(0, "for none"),
            clip_norm=at_least(0, "for none"),
            grad_accum_steps=at_least(1),
            ema=fitted_or("-1 (to fit the run)", -1, interval("[0, 1)", "0 for none")),
        )
        for rule in self.rules:
            parse_parameter_rule(rule)


@dataclasses.dataclass(frozen=True)
class ProfileSpec:
    """Steps to profile for TensorBoard. Profiling is disabled if `steps` is 0."""

    start: int = 0
    steps: int = 0

    def __post_init__(self):
        check_fields(self, "config.train.profile", start=at_least(0), steps=at_least(0, "for none"))


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """Training length, and intervals of logging, evaluation and checkpointing; `resolve` replaces zeros."""

    epochs: float = 0.0  # ignored if steps is set; 0 for 12 epochs, and at least 600 steps
    steps: int = 0
    log_every: int = 0  # steps; 0 for a hundredth of all steps, at most 50
    eval_every: int = 0  # steps; 0 for once per epoch, and at most 20 times
    checkpoint_every: int = 0  # steps; 0 for once per epoch, and at most 20 times
    best_metric: str = "CIDEr-D"  # validation metric that selects the best weights; higher is better
    # Best models to keep in the workdir (model-<step>), 2 or more, for an average by `--mode=soup`.
    kept_models: int = 2
    # Stop after this many evaluations without improvement, counted after the warm-up; 0 for never.
    patience: int = 0
    eval_images: int = 0  # validation images to score during training; 0 for all
    sample_images: int = 16  # validation images to show in TensorBoard
    # How captions are packed to reduce computation on padding. "blocks": the captions of an image share blocks of equal
    # length, and all batches have the same shape. "always": the captions of a device are concatenated, and the step is
    # compiled for each of the few resulting shapes. "never": one caption per row. "auto": the fastest on this platform.
    packing: str = "auto"
    block_length: int = 0  # tokens per block; 0 to fit the captions
    # Dtype in which the gradients of kernels are summed over devices if the compute dtype is bfloat16: "float32", or
    # "bfloat16", which halves the bytes. All other gradients are summed in float32.
    gradient_reduction: str = "float32"
    # If the loss, a gradient or an updated parameter is not finite: "stop", or "skip" to leave the state unchanged by
    # this step, for at most max_skipped_steps steps in a row.
    non_finite: str = "stop"
    max_skipped_steps: int = 5
    # If a step takes watchdog_factor times the median, and at least watchdog_seconds: "log" the stacks of all threads,
    # or also "end" the process with status 124; "off" for no watchdog.
    watchdog: str = "log"
    watchdog_factor: float = 20.0
    watchdog_seconds: float = 300.0
    profile: ProfileSpec = ProfileSpec()

    def __post_init__(self):
        check_fields(
            self,
            "config.train",
            epochs=at_least(0, "to fit the data"),
            steps=at_least(0, "for train.epochs"),
            log_every=at_least(0, "to fit the run"),
            eval_every=at_least(0, "for once per epoch"),
            checkpoint_every=at_least(0, "for once per epoch"),
            kept_models=at_least(2, "the best and the previous best"),
            patience=at_least(0, "for never"),
            eval_images=at_least(0, "for all"),
            sample_images=at_least(0, "for none"),
            packing=one_of("auto", "blocks", "always", "never"),
            block_length=at_least(0, "to fit the captions"),
            gradient_reduction=one_of("float32", "bfloat16"),
            non_finite=one_of("stop", "skip"),
            max_skipped_steps=at_least(0),
            watchdog=one_of("off", "log", "end"),
            watchdog_factor=at_least(1),
            watchdog_seconds=interval("(0, inf)"),
        )


@dataclasses.dataclass(frozen=True)
class MeshSpec:
    """Shape of the (data, model) device mesh, and partition rules of parameters."""

    data: int = -1  # devices along the batch axis; -1 for all remaining devices
    model: int = 1
    # Sharded parameters: (pattern, mesh axis names, one per dimension).
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

    def __post_init__(self):
        devices = number("a number of devices, or -1 for all that remain", lambda count: count >= 1 or count == -1)
        check_fields(self, "config.mesh", data=devices, model=devices)
        if self.data == self.model == -1:
            raise ConfigError(
                "config.mesh.data and config.mesh.model are both -1; set at least one of them to a number of devices"
            )
        for rule in self.rules:
            check_partition_rule(rule)
