"""EfficientNet as the backbone of a run, and its settings in workdirs from this and earlier releases."""

from __future__ import annotations

import json
import subprocess
import sys

import jax.numpy as jnp
import pytest
from etils import epath
from small_models import small_description

from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.backbones.protocol import restored_settings, stages_up_to, stored_settings
from caption_jax.backbones.vit_backbone import ViT
from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.backbones.efficientnet_variants import EfficientNetSettings
from caption_jax.models.backbones.vit_sizes import ViTSettings
from caption_jax.ops.implementations import REFERENCE
from caption_jax.runs.workdir import read_description, write_description

TORCH_SETTINGS = EfficientNetSettings("symmetric", 1e-5, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "a file")


def test_fields_and_settings_are_passed_to_the_module():
    backbone = EfficientNetBackbone("micro", norm_group_size=2, norm_momentum=0.5, drop_path=0.25)
    frozen_norms = frozenset({"stem/norm"})
    assert backbone.build(TORCH_SETTINGS, frozen_norms=frozen_norms, dtype=jnp.bfloat16, ops=REFERENCE) == EfficientNet(
        "micro", 2, 0.5, 0.25, frozen_norms, "symmetric", 1e-5, dtype=jnp.bfloat16, ops=REFERENCE
    )
    assert backbone.batch_multiple == 2 and EfficientNetBackbone().batch_multiple == 1


@pytest.mark.parametrize(
    ("backbone", "settings"), [(EfficientNetBackbone(), TORCH_SETTINGS), (ViT(), ViTSettings(gelu="tanh"))]
)
def test_stored_settings_are_restored(backbone, settings):
    stored = json.loads(json.dumps(stored_settings(settings)))
    assert restored_settings(backbone, stored, settings.mean, settings.std, settings.source) == settings


def test_workdirs_from_earlier_releases_are_read(tmp_path):
    """Earlier releases stored padding and epsilon as top-level fields of model.json."""
    workdir, description = epath.Path(tmp_path), small_description()
    write_description(workdir, description)
    content = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**content.pop("backbone"), **content}))
    restored = read_description(workdir)
    assert restored.model_settings == description.model_settings
    assert (restored.backbone_settings.padding, restored.backbone_settings.norm_epsilon) == ("symmetric", 1e-5)
    assert restored.backbone_settings.mean == (1.0, 2.0, 3.0)


def test_the_key_of_cached_features_is_the_same_as_in_earlier_releases():
    expected = {"variant": "b0", "padding": "symmetric", "norm_epsilon": 1e-5}
    assert EfficientNetBackbone(drop_path=0.5, norm_momentum=0.9).network_key(TORCH_SETTINGS) == expected


def test_weights_are_accepted_only_from_the_same_network():
    assert EfficientNetBackbone(drop_path=0.5).accepts_weights_of(EfficientNetBackbone(weights="a file"))
    assert not EfficientNetBackbone().accepts_weights_of(EfficientNetBackbone("b1"))
    assert not EfficientNetBackbone().accepts_weights_of(ViT()) and not ViT().accepts_weights_of(EfficientNetBackbone())
    assert ViT(drop_path=0.5).accepts_weights_of(ViT()) and not ViT().accepts_weights_of(ViT("b16"))


def test_stages_up_to_includes_the_named_stage():
    names = EfficientNetBackbone("micro").stage_names
    assert stages_up_to(names, "stage_1") == ("stem", "stage_1") and stages_up_to(names, "") == ()
    with pytest.raises(ValueError, match="unknown stage 'stage_9'; expected one of stem, stage_1"):
        stages_up_to(names, "stage_9")


def test_checking_a_config_does_not_import_flax():
    code = "import sys; from caption_jax.specs import RunSpec; RunSpec().model.encoder.settings()"
    process = subprocess.run(
        [sys.executable, "-c", f"{code}; print('flax' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "False"
