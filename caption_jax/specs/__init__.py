"""The config of a run as frozen dataclasses, with the default, meaning and validation of each key."""

from caption_jax.specs.augment_spec import AugmentSpec
from caption_jax.specs.conversion import as_mapping, build_spec, differences
from caption_jax.specs.decode_spec import DecodeSpec
from caption_jax.specs.learning_spec import MeshSpec, ObjectiveSpec, OptimizerSpec, ProfileSpec, TrainSpec
from caption_jax.specs.metrics_spec import MetricsSpec
from caption_jax.specs.model_spec import ContextSpec, DecoderSpec, JointEmbeddingSpec, ModelSpec, TextEncoderSpec
from caption_jax.specs.resolve import DatasetFacts, replace_values, resolve
from caption_jax.specs.run_spec import RunSpec
from input_pipeline.data_spec import DataSpec, FeatureCacheSpec, SplitFiles, SplitFractions
from input_pipeline.limits import Limits

__all__ = [
    "AugmentSpec",
    "ContextSpec",
    "DataSpec",
    "DatasetFacts",
    "DecodeSpec",
    "DecoderSpec",
    "FeatureCacheSpec",
    "JointEmbeddingSpec",
    "Limits",
    "MeshSpec",
    "MetricsSpec",
    "ModelSpec",
    "ObjectiveSpec",
    "OptimizerSpec",
    "ProfileSpec",
    "RunSpec",
    "SplitFiles",
    "SplitFractions",
    "TextEncoderSpec",
    "TrainSpec",
    "as_mapping",
    "build_spec",
    "differences",
    "replace_values",
    "resolve",
]
