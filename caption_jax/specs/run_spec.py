"""The validated config of a run as one frozen dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from caption_jax.backbones.backbone_checks import check_image_size
from caption_jax.specs.augment_spec import AugmentSpec
from caption_jax.specs.conversion import as_mapping, build_spec
from caption_jax.specs.decode_spec import DecodeSpec
from caption_jax.specs.extensions import DeferredExtension, Loading, extensions_field
from caption_jax.specs.learning_spec import MeshSpec, ObjectiveSpec, OptimizerSpec, TrainSpec
from caption_jax.specs.metrics_spec import MetricsSpec
from caption_jax.specs.model_spec import ModelSpec
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError
from input_pipeline.limits import Limits
from input_pipeline.spec_checks import SEED, check_fields, one_of, show


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """All config keys of a run. Sections validate their own keys; this class checks constraints between sections."""

    seed: int = 0
    # Compute dtype: "auto" (bfloat16 on accelerators that have it, otherwise float32), "bfloat16" or "float32".
    dtype: str = "auto"
    init_from: str = ""  # workdir of a run, "demo" or hf://owner/name, to load the initial weights from; "" for none
    data: DataSpec = DataSpec()
    limits: Limits = Limits()
    augment: AugmentSpec = AugmentSpec()
    model: ModelSpec = ModelSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    decode: DecodeSpec = DecodeSpec()
    metrics: MetricsSpec = MetricsSpec()
    # Additional evaluators of the validation and test splits: label -> {"name": "package.module:Class", ..}
    # (docs/extending.md).
    evaluators: Mapping[str, Any] = extensions_field()
    mesh: MeshSpec = MeshSpec()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], loading: Loading = "import") -> RunSpec:
        """Builds a spec from a ConfigDict, or from nested dictionaries with the same keys.

        Args:
            config: all keys, or those that differ from the defaults.
            loading: whether to import the modules of objectives and evaluators; see `import_extensions`.

        Raises:
            ConfigError: a value is out of range, values contradict each other, or an extension cannot be loaded. The
                message names the key.
        """
        return build_spec(cls, config, loading=loading)

    def __post_init__(self):
        check_fields(self, "config", seed=SEED, dtype=one_of("auto", "bfloat16", "float32"))
        check_image_size(self.model.encoder, self.data.image_size)
        self._check_batches()
        self._check_contrastive()
        self._check_terms()
        self._check_context()
        self._check_feature_cache()

    def import_extensions(self) -> RunSpec:
        """Returns the spec with all objectives and evaluators, whose modules are imported.

        Raises:
            ConfigError: one of them cannot be imported or built. The message names the key and the module.
        """
        configured = (*self.objective.terms.values(), *self.evaluators.values())
        if not any(isinstance(extension, DeferredExtension) for extension in configured):
            return self
        try:
            return RunSpec.from_config(as_mapping(self))
        except ConfigError as error:
            raise ConfigError(
                f"{error}: training and evaluation require it; restore the module or remove the key"
            ) from error

    @property
    def has_joint_embedding(self) -> bool:
        """Whether the model has a joint embedding of images and texts."""
        return self.objective.contrastive_weight > 0

    @property
    def has_context(self) -> bool:
        """Whether the decoder attends to texts in addition to the image."""
        return self.model.context.max_texts > 0

    def _check_batches(self) -> None:
        microbatches, size = self.optimizer.grad_accum_steps, self.data.batch_size
        if size % microbatches:
            raise ConfigError(
                f"config.data.batch_size={size} must be a multiple of config.optimizer.grad_accum_steps="
                f"{microbatches}: set it to {max(size // microbatches, 1) * microbatches}"
            )

    def _check_contrastive(self) -> None:
        weight, microbatches = self.objective.contrastive_weight, self.optimizer.grad_accum_steps
        if self.decode.rerank_weight and not weight:
            raise ConfigError(
                f"config.decode.rerank_weight={self.decode.rerank_weight} compares captions with images, which "
                "requires a text encoder: set config.objective.contrastive_weight above 0, or rerank_weight to 0"
            )
        if self.decode.ranks_candidates:
            self.decode.check_ranking()
        if weight and microbatches > 1:
            raise ConfigError(
                f"config.optimizer.grad_accum_steps={microbatches} with config.objective.contrastive_weight={weight}: "
                "captions would be contrasted only with the images of their microbatch, which is an easier loss than "
                "that of the whole batch. Set grad_accum_steps to 1; to save memory, set "
                "config.model.text_encoder.remat=True or reduce config.data.batch_size"
            )

    def _check_terms(self) -> None:
        microbatches = self.optimizer.grad_accum_steps
        for label, objective in self.objective.terms.items():
            if microbatches > 1 and not getattr(objective, "accumulates", True):
                raise ConfigError(
                    f"config.optimizer.grad_accum_steps={microbatches} with config.objective.terms.{label}: it "
                    "compares the rows of a batch with each other, so the sum over microbatches differs from the loss "
                    "of the whole batch. Set grad_accum_steps to 1"
                )

    def _check_context(self) -> None:
        max_texts = self.model.context.max_texts
        if max_texts and not self.data.context:
            raise ConfigError(
                f"config.model.context.max_texts={max_texts} requires context captions: set config.data.context to the "
                "folder of an index of the training split that has the neighbours of all splits (docs/context.md)"
            )

    def _check_feature_cache(self) -> None:
        cache, names = self.data.feature_cache, self.model.encoder.stage_names
        if not cache.stage:
            return
        if cache.stage not in names:
            raise ConfigError(
                f"config.data.feature_cache.stage: unknown stage {show(cache.stage)}; expected one of "
                f"{', '.join(names)}"
            )
        fine_stage = getattr(self.model.encoder, "fine_stage", "")
        if fine_stage and names.index(cache.stage) > names.index(fine_stage):
            raise ConfigError(
                f"config.data.feature_cache.stage={cache.stage!r} comes after config.model.encoder.fine_stage="
                f"{fine_stage!r}, whose output the model also needs: set feature_cache.stage to {fine_stage!r}"
            )
        if cache.views > 1 and self.augment.is_identity:
            raise ConfigError(
                f"config.data.feature_cache.views is {cache.views}, but without augmentation all views of an "
                "image are identical: set views to 1, or enable crops, flips or jitter in config.augment"
            )
