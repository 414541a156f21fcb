"""The example backbone of docs/extending.md."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from random_weights import random_variables
from small_run import get_config

from caption_jax.errors import ConfigError
from caption_jax.models.build import build_model
from caption_jax.specs import RunSpec

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)


@pytest.fixture
def config(example_files) -> ConfigDict:
    config = get_config()
    config.model.encoder = {"name": "custom.backbone:Patches", "width": 24}
    return config


def test_the_decoder_attends_to_the_features_of_the_example_backbone(config):
    model = build_model(RunSpec.from_config(config).model, vocabulary_size=9, max_length=6)
    tokens = jnp.zeros((2, 1, 5), jnp.int32)
    variables = random_variables(model, IMAGES, tokens)
    assert set(variables["params"]["image_encoder"]["backbone"]) == {"embed", "mix"}

    @jax.jit
    def compute_features_and_logits(variables):
        features = model.apply(variables, "embed", IMAGES, method="encode_to_stage")
        logits_from_features = model.apply(variables, features, tokens, start_after="embed")
        return features, logits_from_features, model.apply(variables, IMAGES, tokens)

    compiled = compute_features_and_logits.lower(variables).compile({"xla_backend_optimization_level": "0"})
    features, logits_from_features, logits = compiled(variables)
    assert logits.shape == (2, 1, 5, 9) and not np.allclose(logits[0], logits[1])
    assert features.shape == (2, 2, 2, 24)
    np.testing.assert_allclose(logits_from_features, logits, rtol=1e-5)


def test_errors_of_the_example_backbone_name_the_config_key(config):
    config.model.encoder = {"name": "custom.backbone:Patches", "weights": "a file"}
    with pytest.raises(ConfigError, match=r"config\.model\.encoder: weights is 'a file'"):
        RunSpec.from_config(config)


def test_the_feature_cache_rejects_stages_that_the_backbone_does_not_have(config):
    config.data.feature_cache.stage = "stage_1"
    with pytest.raises(ConfigError, match=r"unknown stage 'stage_1'; expected one of embed, mix"):
        RunSpec.from_config(config)
