"""A whole config, validated: what a run does, as one frozen value that is stored, compared and hashed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caption_jax.backbones.backbone_checks import check_image_size
from caption_jax.specs.augment_spec import AugmentSpec
from caption_jax.specs.conversion import build_spec
from caption_jax.specs.decode_spec import DecodeSpec
from caption_jax.specs.extensions import IfUnavailable, UnavailableExtension, extensions
from caption_jax.specs.learning_spec import MeshSpec, ObjectiveSpec, OptimizerSpec, TrainSpec
from caption_jax.specs.model_spec import ModelSpec
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError
from input_pipeline.spec_checks import SEED, check_fields, one_of


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Every key of a run. Each part checks itself; what two parts must agree on is checked here."""

    seed: int = 0
    dtype: str = "auto"  # compute dtype: "auto" (bfloat16 on accelerators, float32 on CPU), "bfloat16" or "float32"
    init_from: str = ""  # workdir of the run to start from; "" for fresh weights
    data: DataSpec = DataSpec()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ModelSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    decode: DecodeSpec = DecodeSpec()
    # More evaluators of the validation and test splits: label -> {"name": "package.module:Class", ..}
    # (docs/extending.md).
    evaluators: Mapping[str, Any] = extensions()
    mesh: MeshSpec = MeshSpec()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], if_unavailable: IfUnavailable = "refuse") -> RunSpec:
        """The spec of a ConfigDict, or of nested dictionaries with the same keys.

        Args:
            config: the keys that differ from their defaults, or all.
            if_unavailable: what becomes of objectives and evaluators that cannot be loaded; see `build_spec`. What
                trains or evaluates refuses a spec that keeps them (`check_available`).

        Raises:
            ConfigError: a value out of its range, keys that contradict each other, an extension that cannot be loaded;
                the message names the key.
        """
        return build_spec(cls, config, if_unavailable=if_unavailable)

    def __post_init__(self):
        check_fields(self, "config", seed=SEED, dtype=one_of("auto", "bfloat16", "float32"))
        check_image_size(self.model.encoder, self.data.image_size)
        self._check_batches()
        self._check_contrastive()
        self._check_terms()
        self._check_context()
        self._check_feature_cache()

    @property
    def unavailable(self) -> tuple[UnavailableExtension, ...]:
        """The objectives and evaluators that could not be loaded."""
        named = (*self.objective.terms.values(), *self.evaluators.values())
        return tuple(one for one in named if isinstance(one, UnavailableExtension))

    def check_available(self) -> None:
        """Raises ConfigError, which names the key and the module, where an objective or evaluator is unavailable."""
        for extension in self.unavailable:
            raise ConfigError(f"{extension}: training and evaluation need it; put it back, or take the key out")

    @property
    def has_joint_embedding(self) -> bool:
        """Whether the model puts images and texts into a joint embedding."""
        return self.objective.contrastive_weight > 0

    @property
    def has_context(self) -> bool:
        """Whether the decoder attends to texts in addition to the image."""
        return self.model.context.slots > 0

    def _check_batches(self) -> None:
        microbatches, size = self.optimizer.accumulation, self.data.batch_size
        if size % microbatches:
            raise ConfigError(
                f"config.data.batch_size={size} must be a multiple of {microbatches} accumulated microbatches: set it "
                f"to {max(size // microbatches, 1) * microbatches}"
            )

    def _check_contrastive(self) -> None:
        weight, microbatches = self.objective.contrastive_weight, self.optimizer.accumulation
        if self.decode.rerank_weight and not weight:
            raise ConfigError(
                f"config.decode.rerank_weight={self.decode.rerank_weight} compares captions with images, which needs a "
                "text encoder: set config.objective.contrastive_weight above 0, or rerank_weight to 0"
            )
        if self.decode.rerank_weight:
            self.decode.check_ranking()
        if weight and microbatches > 1:
            raise ConfigError(
                f"config.optimizer.accumulation={microbatches} with config.objective.contrastive_weight={weight}: each "
                "slice of the batch would be told apart from its own images only, which is another, easier loss than "
                "that of the whole batch. Set accumulation to 1, with config.model.text_encoder.remat=True or a "
                "smaller config.data.batch_size where memory is short"
            )

    def _check_terms(self) -> None:
        microbatches = self.optimizer.accumulation
        for label, objective in self.objective.terms.items():
            if microbatches > 1 and not getattr(objective, "accumulates", True):
                raise ConfigError(
                    f"config.optimizer.accumulation={microbatches} with config.objective.terms.{label}: it compares "
                    "the rows of a batch with each other, so microbatches would add up to another loss than that of "
                    "the whole batch. Set accumulation to 1"
                )

    def _check_context(self) -> None:
        slots = self.model.context.slots
        if slots and not self.data.context:
            raise ConfigError(
                f"config.model.context.slots={slots} needs captions to put there: set config.data.context to the "
                "folder of an index of the training split, with neighbours of the splits (docs/context.md)"
            )

    def _check_feature_cache(self) -> None:
        cache, names = self.data.feature_cache, self.model.encoder.stage_names
        if not cache.stage:
            return
        if cache.stage not in names:
            raise ConfigError(
                f"config.data.feature_cache.stage: there is no stage {cache.stage!r}; choose one of {', '.join(names)}"
            )
        if cache.views > 1 and self.augment.is_identity:
            raise ConfigError(
                f"config.data.feature_cache.views is {cache.views}, but config.augment makes all views of an image the "
                "same: set views to 1, or crop, flip or jitter"
            )
