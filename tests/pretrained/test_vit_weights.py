"""ViTs with weights from other libraries match the features of those libraries."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_vits
from safetensors.numpy import save_file
from seeded_weights import get_shapes, load_seeded_weights, relative_error, seeded_images, seeded_weights

from caption_jax.backbones.vit_backbone import ViT
from caption_jax.pretrained import WeightsError
from caption_jax.pretrained.vit_weights import load_vit_weights, resize_positions, vit_settings

MID_GREY = (127.5, 127.5, 127.5)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def compute_features(weights: str, size: str, images: np.ndarray) -> np.ndarray:
    backbone = ViT(size=size, weights=weights)
    pretrained = backbone.load(images.shape[1])
    assert pretrained.settings == backbone.settings()
    apply = jax.jit(functools.partial(backbone.build(pretrained.settings).apply, train=False))
    # Each program runs only once, so most of the time would be spent on compiler optimisations.
    compiled = apply.lower(pretrained.variables, images).compile({"xla_backend_optimization_level": "0"})
    return np.asarray(compiled(pretrained.variables, images))


def load_golden(library: str) -> np.lib.npyio.NpzFile:
    return np.load(torch_vits.GOLDEN / f"{library}.npz")


def make_golden_weights(library: str) -> dict[str, np.ndarray]:
    shapes = json.loads(str(load_golden(library)["shapes"]))
    return seeded_weights({key: tuple(shape) for key, shape in shapes.items()})


@pytest.fixture(params=torch_vits.LIBRARIES)
def library(request) -> str:
    return request.param


def save_folder(library: str, weights: dict[str, np.ndarray], folder: Path) -> str:
    """Saves weights and JSON files in the format of the library, and returns the path of the folder."""
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    heads = torch_vits.SIZES["micro"][2]
    if library.startswith("timm"):
        config = {"architecture": "vit", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    elif library == "transformers_vit":
        config = {"model_type": "vit", "layer_norm_eps": 1e-12, "hidden_act": "gelu", "num_attention_heads": heads}
    else:
        config = {"model_type": "siglip", "vision_config": {"num_attention_heads": heads}}
    (folder / "config.json").write_text(json.dumps(config))
    if library.startswith("transformers"):
        preprocessing = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return str(folder)


def test_features_match_the_library(library, tmp_path):
    weights = save_folder(library, make_golden_weights(library), tmp_path)
    actual = compute_features(weights, "micro", seeded_images(torch_vits.MICRO_SIDE))
    expected = load_golden(library)["features"]
    assert actual.shape == expected.shape == (2, 4, 4, 32)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("side", torch_vits.OTHER_SIDES)
@pytest.mark.parametrize("library", ["timm", "timm_siglip"], indirect=True)
def test_features_at_other_image_sizes_match_the_library(library, side, tmp_path):
    weights = save_folder(library, make_golden_weights(library), tmp_path)
    actual = compute_features(weights, "micro", seeded_images(side))
    expected = load_golden(library)[f"side_{side}"]
    assert actual.shape == expected.shape == (2, side // 8, side // 8, 32)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.torch
def test_golden_files_match_the_library(library):
    pytest.importorskip("torch")
    pytest.importorskip(library.split("_")[0])
    module, stored = torch_vits.build_module(library, "micro"), load_golden(library)
    assert get_shapes(module) == {key: value.shape for key, value in make_golden_weights(library).items()}
    load_seeded_weights(module)
    actual = torch_vits.compute_features(library, module, seeded_images(torch_vits.MICRO_SIDE))
    assert relative_error(actual, stored["features"]) < 1e-5
    for side in torch_vits.OTHER_SIDES if library.startswith("timm") else ():
        actual = torch_vits.compute_resized_features(library, side)
        assert relative_error(actual, stored[f"side_{side}"]) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize("size", ["s16", "b16"])
def test_features_of_full_size_models_match_the_library(library, size, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip(library.split("_")[0])
    module = torch_vits.build_module(library, size)
    load_seeded_weights(module)
    if library.startswith("timm"):
        name = f"vit_{'small' if size == 's16' else 'base'}_patch16_224"
        torch.save(module.state_dict(), tmp_path / f"{name}.pth")
        weights = str(tmp_path / f"{name}.pth")
    else:
        module.save_pretrained(tmp_path, safe_serialization=size == "s16")
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
        weights = str(tmp_path)
    images = seeded_images(224)
    expected = torch_vits.compute_features(library, module, images)
    assert relative_error(compute_features(weights, size, images), expected) < 1e-4


def test_the_vision_tower_of_a_full_siglip_model_is_loaded(tmp_path):
    weights = make_golden_weights("transformers_siglip")
    unused = {"text_model.final_layer_norm.weight": np.ones(4, np.float32), "logit_scale": np.ones(1, np.float32)}
    full = load_vit_weights(save_folder("transformers_siglip", weights | unused, tmp_path / "full"), "micro", 32)
    vision = load_vit_weights(save_folder("transformers_siglip", weights, tmp_path / "vision"), "micro", 32)
    jax.tree.map(np.testing.assert_array_equal, full.variables, vision.variables)


def test_settings_depend_on_the_source_library(tmp_path):
    paths = {
        name: save_folder(name, make_golden_weights(name), tmp_path / name)
        for name in ("transformers_vit", "transformers_siglip", "timm")
    }
    vit = vit_settings(paths["transformers_vit"], "micro")
    assert (vit.class_token, vit.gelu, vit.norm_epsilon, vit.mean) == (True, "exact", 1e-12, MID_GREY)
    (tmp_path / "transformers_vit" / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
    vit = vit_settings(paths["transformers_vit"], "micro")
    assert vit.mean == pytest.approx((123.675, 116.28, 103.53))
    assert vit.std == pytest.approx((58.395, 57.12, 57.375))

    siglip = vit_settings(paths["transformers_siglip"], "micro")
    assert (siglip.class_token, siglip.gelu, siglip.norm_epsilon, siglip.std) == (False, "tanh", 1e-6, MID_GREY)

    timm = vit_settings(paths["timm"], "micro")
    assert (timm.class_token, timm.gelu, timm.norm_epsilon, timm.mean) == (True, "exact", 1e-6, MID_GREY)
    assert paths["timm"] in timm.source
    config = {"model_args": {"act_layer": "gelu_tanh"}, "pretrained_cfg": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    timm = vit_settings(paths["timm"], "micro")
    assert (timm.gelu, timm.mean, timm.std) == ("tanh", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


@pytest.mark.parametrize(
    ("library", "file", "config", "message"),
    [
        ("transformers_vit", "config.json", {"num_attention_heads": 4}, r"4 heads.*'micro' has 2.*encoder\.size"),
        ("transformers_vit", "config.json", {"hidden_act": "quick_gelu"}, r"activation 'quick_gelu'"),
        (
            "timm",
            "config.json",
            {"pretrained_cfg": {}},
            r"unknown input scaling.*timm's config\.json",
        ),
        ("transformers_vit", "preprocessor_config.json", {}, r"unknown input scaling.*preprocessor_config\.json"),
    ],
    indirect=["library"],
)
def test_unsupported_or_incomplete_json_files_are_rejected(library, file, config, message, tmp_path):
    weights = save_folder(library, make_golden_weights(library), tmp_path)
    (tmp_path / file).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=message):
        vit_settings(weights, "micro")


def test_input_scaling_is_inferred_from_timm_file_names(tmp_path):
    for name in ("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_siglip_256.webli"):
        save_file(make_golden_weights("timm"), tmp_path / f"{name}.safetensors")
        assert vit_settings(str(tmp_path / f"{name}.safetensors"), "micro").mean == MID_GREY
    save_file(make_golden_weights("timm"), tmp_path / "vit_small_patch16_224.dino.safetensors")
    with pytest.raises(WeightsError, match="unknown input scaling"):
        vit_settings(str(tmp_path / "vit_small_patch16_224.dino.safetensors"), "micro")


def test_mismatched_keys_and_shapes_are_rejected(tmp_path):
    weights = make_golden_weights("timm")

    def load(state, size="micro"):
        return load_vit_weights(save_folder("timm", state, tmp_path), size, 32)

    with pytest.raises(WeightsError, match=r"1 missing keys: 'blocks\.1\.attn\.qkv\.bias'"):
        load({key: value for key, value in weights.items() if key != "blocks.1.attn.qkv.bias"})
    with pytest.raises(WeightsError, match=r"1 unexpected keys: 'blocks\.0\.ls1\.gamma'"):
        load(weights | {"blocks.0.ls1.gamma": np.ones(32, np.float32)})
    with pytest.raises(WeightsError, match=r"1 missing keys: 'pos_embed'"):
        load({key: value for key, value in weights.items() if key != "pos_embed"})
    with pytest.raises(WeightsError, match=r"'patch_embed\.proj\.weight' \(32, 192\).*patches/kernel \(192, 32\)"):
        load(weights | {"patch_embed.proj.weight": np.ones((32, 192), np.float32)})
    with pytest.raises(WeightsError, match=r"'pos_embed' \(1, 13, 32\)"):
        load(weights | {"pos_embed": np.ones((1, 13, 32), np.float32)})
    with pytest.raises(WeightsError, match=r"config\.model\.encoder\.size"):
        load(weights, "s16")
    with pytest.raises(WeightsError, match=r"'encoder\.weight'"):
        load({"encoder.weight": np.ones(3, np.float32)})


def test_hub_names_are_downloaded_and_other_names_are_rejected(tmp_path, monkeypatch):
    import huggingface_hub

    folder = save_folder("transformers_siglip", make_golden_weights("transformers_siglip"), tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: folder)
    assert not vit_settings("google/siglip-base-patch16-224", "micro").class_token
    with pytest.raises(WeightsError, match=r"config\.model\.encoder\.weights is 'imagenet'.*timm/vit_small"):
        vit_settings("imagenet", "micro")
    with pytest.raises(WeightsError, match=r"config\.model\.encoder\.weights is empty"):
        ViT().load(224)


def test_position_embeddings_are_interpolated_only_for_other_grid_sizes():
    rows, columns = np.mgrid[:6, :6].astype(np.float32)
    embeddings = np.concatenate([[[100.0, 100.0]], np.stack([rows.ravel(), columns.ravel()], -1)]).astype(np.float32)
    np.testing.assert_array_equal(resize_positions(embeddings, 6, prefix=1), embeddings)
    larger = resize_positions(embeddings, 12, prefix=1)
    np.testing.assert_array_equal(larger[0], embeddings[0])
    inner = larger[1:].reshape(12, 12, 2)[3:-3, 3:-3]
    np.testing.assert_allclose(inner[..., 0], np.broadcast_to((np.arange(3, 9) - 0.5)[:, None] / 2, (6, 6)), atol=1e-5)
    np.testing.assert_allclose(inner[..., 1], inner[..., 0].T, atol=1e-5)
