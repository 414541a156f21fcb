"""Unsupported image sizes and batch sizes are rejected before any computation, with a one-line error."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

import pytest
from etils import epath
from small_models import small_description
from small_run import get_config

from caption_jax.backbones.backbone_checks import check_batch, check_image_size
from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.backbones.vit_backbone import ViT
from caption_jax.errors import ConfigError
from caption_jax.runs.checkpoints import has_checkpoint
from caption_jax.runs.initial_variables import variable_shapes
from caption_jax.runs.step_images import check_step_images
from caption_jax.specs import RunSpec
from caption_jax.training.dry_run import dry_run
from caption_jax.training.loop import train_and_evaluate

NORMS = frozenset({"stem/norm"})
BACKBONE, STEM = r"image_encoder/backbone/.*", r"image_encoder/backbone/stem/.*"


@dataclasses.dataclass(frozen=True)
class EvenBatchBackbone:
    """A user-defined backbone whose checks raise ValueError."""

    settings_class: ClassVar[type] = object
    stage_names: ClassVar[tuple[str, ...]] = ()

    def check_image_size(self, image_size):
        if image_size != 30:
            raise ValueError(f"image_size is {image_size}; set it to 30")

    def check_batch(self, images, trained_norms):
        if images % 2:
            raise ValueError(f"the number of images is {images}; it must be even")


def make_spec(root="nowhere", **changes) -> RunSpec:
    config = get_config().unlock()
    config.data.root = str(root)
    config.update_from_flattened_dict(changes)
    return RunSpec.from_config(config)


def test_the_image_size_of_a_vit_must_be_a_multiple_of_the_patch_size():
    config = get_config().unlock()
    config.model.encoder = {"name": "caption_jax.backbones.vit_backbone:ViT", "size": "micro"}
    config.data.image_size = 30
    with pytest.raises(ConfigError, match=r"data\.image_size is 30; it must be a multiple of the patch size 8 .* 32$"):
        RunSpec.from_config(config)
    config.data.image_size = 40
    assert RunSpec.from_config(config).data.image_size == 40
    with pytest.raises(ConfigError, match=r"such as 16$"):
        check_image_size(ViT(), 3)


def test_user_defined_checks_are_optional_and_their_errors_name_the_key():
    config = get_config().unlock()
    config.model.encoder = {"name": f"{__name__}:EvenBatchBackbone"}
    with pytest.raises(ConfigError, match=r"config\.model\.encoder: image_size is 32; set it to 30"):
        RunSpec.from_config(config)
    with pytest.raises(ConfigError, match=r"config\.model\.encoder: the number of images is 3; it must be even"):
        check_batch(EvenBatchBackbone(), 3, NORMS)
    check_batch(ViT(), 3, NORMS)
    check_image_size(EfficientNetBackbone(), 3)


def test_the_group_size_of_trained_norms_must_divide_the_batch():
    backbone = EfficientNetBackbone("micro", norm_group_size=6)
    check_batch(backbone, 12, NORMS)
    check_batch(backbone, 4, frozenset())
    check_batch(EfficientNetBackbone("micro"), 5, NORMS)
    with pytest.raises(ConfigError, match=r"norm_group_size=6 does not divide the 4 images .* such as 2, or to 0"):
        check_batch(backbone, 4, NORMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.encoder.norm_group_size": 3}, r"model\.encoder\.norm_group_size=3 does not divide the 4 images"),
        (
            {"model.encoder.norm_group_size": 4, "optimizer.grad_accum_steps": 2},
            "norm_group_size=4 does not divide the 2",
        ),
    ],
)
def test_runs_are_rejected_if_the_group_size_does_not_divide_the_batch_or_microbatch(
    small_images, tmp_path, changes, message
):
    for run in (dry_run, train_and_evaluate):
        with pytest.raises(ConfigError, match=message):
            run(make_spec(small_images, **changes), tmp_path)
    assert not has_checkpoint(epath.Path(tmp_path))


@pytest.mark.parametrize(
    ("stem_rule", "is_rejected"),
    [({"lr": 0.0}, False), ({"lr": 1.0, "from_step": 500}, False), ({"lr": 1.0, "from_step": 100}, True)],
)
def test_the_group_size_of_frozen_norms_is_not_checked(stem_rule, is_rejected):
    rules = ((STEM, stem_rule), (rf"(?!{STEM}){BACKBONE}", {"lr": 0.0}), (rf"(?!{BACKBONE}).*", {"lr": 1.0}))
    spec = make_spec(**{"optimizer.rules": rules, "model.encoder.norm_group_size": 3, "train.steps": 200})
    params = variable_shapes(small_description())["params"]
    with pytest.raises(ConfigError, match="norm_group_size=3") if is_rejected else contextlib.nullcontext():
        check_step_images(spec, params)
