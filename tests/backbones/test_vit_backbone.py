"""Config keys, settings and stages of the ViT backbone."""

from __future__ import annotations

import subprocess
import sys

import jax.numpy as jnp
import pytest

from caption_jax.backbones.vit_backbone import ViT
from caption_jax.errors import ConfigError
from caption_jax.models.backbones.vit import VisionTransformer
from caption_jax.models.backbones.vit_sizes import ViTSettings


def test_fields_and_settings_are_passed_to_the_module():
    backbone = ViT(size="micro", drop_path=0.25)
    siglip = ViTSettings(class_token=False, gelu="tanh", norm_epsilon=1e-5)
    module = backbone.build(siglip, frozen_norms=frozenset({"norm"}), dtype=jnp.bfloat16)
    assert module == VisionTransformer(
        "micro", False, "tanh", 1e-5, drop_path=0.25, frozen_norms=frozenset({"norm"}), dtype=jnp.bfloat16
    )
    assert backbone.build(backbone.settings(), dtype=jnp.float32) == VisionTransformer("micro", drop_path=0.25)


def test_stages_and_stride_of_s16():
    backbone = ViT()
    assert backbone.stride == 16
    assert backbone.stage_names == ("embed", *(f"block_{index}" for index in range(12)), "norm")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "b32"}, r"config\.model\.encoder\.size is 'b32'; expected one of s16, b16"),
        ({"drop_path": 1.0}, r"config\.model\.encoder\.drop_path is 1\.0"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(ConfigError, match=message):
        ViT(**fields)


def test_computing_the_settings_of_a_vit_does_not_import_flax():
    code = (
        "import sys; from caption_jax.backbones.vit_backbone import ViT; ViT().settings(); print('flax' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"
