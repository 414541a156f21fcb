"""ViT weights from timm and transformers (including the image towers of SigLIP), and the matching model settings."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from caption_jax.errors import WeightsError
from caption_jax.models.backbones.vit import VisionTransformer
from caption_jax.models.backbones.vit_sizes import SIZES, Triple, ViTSettings
from caption_jax.pretrained.checkpoint_contents import UNUSED_KEYS, select_network
from caption_jax.pretrained.weight_files import TORCH_NAMED_ENDINGS, Tensor, open_weights
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
_SIZE_KEY = "config.model.encoder.size"
_GELU: dict[str, Literal["exact", "tanh"]] = {
    "gelu": "exact",
    "gelu_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
# Names of timm models with inputs in -1..1, optionally followed by a tag that identifies the training data.
_TIMM_INCEPTION_SCALING = r"vit_(small|base)_patch16_(siglip_)?(gap_)?\d+(\.(augreg|orig|sam_in1k|webli|v2_webli)\w*)?"


@dataclass(frozen=True)
class PretrainedViT:
    """Pretrained weights and the settings that they require.

    Attributes:
        settings: settings of the network that the weights were trained with.
        variables: `params` of `VisionTransformer` as float32 NumPy arrays, and empty `batch_stats`.
    """

    settings: ViTSettings
    variables: dict[str, dict[str, Any]]

    @property
    def source(self) -> str:
        """Origin of the weights, for the log."""
        return self.settings.source


@dataclass(frozen=True)
class _Naming:
    """The naming scheme of a ViT in one library.

    Attributes:
        library: name of the library.
        modules: the library's module names by our paths, with "block" in place of "block_0", "block_1" etc. If there
            are three names, their arrays are concatenated.
        position: key of the position embedding.
        block: the library's prefix for a block; {} is the block index.
        ignored: regular expression for keys, without the prefix, that do not affect the features.
        class_token: key of the class token; "" if the model has none.
    """

    library: Literal["timm", "transformers, ViT", "transformers, SigLIP"]
    modules: Mapping[str, str | tuple[str, str, str]]
    position: str
    block: str
    ignored: str
    class_token: str = ""

    def keys(self, path: str) -> tuple[str, ...]:
        """Returns the library's keys for our parameter at `path` ("block_0/attention/qkv/kernel")."""
        if path in ("embed/class_token", "embed/position"):
            return (self.class_token if path == "embed/class_token" else self.position,)
        module, leaf = path.rsplit("/", 1)
        block = re.match(r"block_(\d+)/", module)
        names = self.modules[re.sub(r"block_\d+/", "block/", module)]
        prefix = self.block.format(block[1]) if block else ""
        suffix = ".bias" if leaf == "bias" else ".weight"
        return tuple(prefix + name + suffix for name in ([names] if isinstance(names, str) else names))


# Module names in timm, transformers' ViT and transformers' SigLIP (in this order), by our paths.
_MODULES: dict[str, tuple[str | tuple[str, str, str], ...]] = {
    "embed/patches": ("patch_embed.proj", "embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
    "block/attention_norm": ("norm1", "layernorm_before", "layer_norm1"),
    "block/attention/qkv": (
        "attn.qkv",
        ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    "block/attention/out": ("attn.proj", "attention.output.dense", "self_attn.out_proj"),
    "block/feed_forward_norm": ("norm2", "layernorm_after", "layer_norm2"),
    "block/feed_forward/expand": ("mlp.fc1", "intermediate.dense", "mlp.fc1"),
    "block/feed_forward/contract": ("mlp.fc2", "output.dense", "mlp.fc2"),
    "norm": ("norm", "layernorm", "post_layernorm"),
}
_TIMM_MODULES, _VIT_MODULES, _SIGLIP_MODULES = (
    {path: names[column] for path, names in _MODULES.items()} for column in range(3)
)
_TIMM = _Naming(
    library="timm",
    modules=_TIMM_MODULES,
    class_token="cls_token",
    position="pos_embed",
    block="blocks.{}.",
    ignored=r"(head|attn_pool|pre_logits)\..*",
)
_VIT = _Naming(
    library="transformers, ViT",
    modules=_VIT_MODULES,
    class_token="embeddings.cls_token",
    position="embeddings.position_embeddings",
    block="encoder.layer.{}.",
    ignored=r"(pooler|classifier)\..*|embeddings\.mask_token",
)
_SIGLIP = _Naming(
    library="transformers, SigLIP",
    modules=_SIGLIP_MODULES,
    position="embeddings.position_embedding.weight",
    block="encoder.layers.{}.",
    ignored=r"(head|classifier)\..*|embeddings\.position_ids",
)


def vit_settings(weights: str, size: str) -> ViTSettings:
    """Returns the settings of `weights` without reading the weights themselves (see `load_vit_weights`)."""
    return _read_settings(_open(weights), size)


def load_vit_weights(weights: str, size: str, image_size: int) -> PretrainedViT:
    """Loads weights, converted to the names and layouts of `VisionTransformer`.

    Args:
        weights: a `.safetensors` or PyTorch file, also a training checkpoint; a folder with such a file, as saved by
            transformers or timm; or a Hugging Face Hub model ('google/vit-base-patch16-224-in21k',
            'google/siglip-base-patch16-224', 'timm/vit_small_patch16_224.augreg_in21k_ft_in1k'). The JSON files next to
            the weights determine epsilon, activation and input scaling.
        size: a key of `SIZES`.
        image_size: side of the images in pixels; position embeddings for another size are resized as in timm.

    Raises:
        WeightsError: keys are missing, unexpected or have a different shape; the number of heads or the activation does
            not match; the input scaling is unknown; or the weights cannot be located or read.
    """
    opened = _open(weights)
    path, tensors, naming = opened.path, opened.tensors, opened.naming
    settings = _read_settings(opened, size)
    tokens = math.prod(tensors[naming.position].shape[:-1]) if naming.position in tensors else 0
    side = math.isqrt(max(tokens - settings.class_token, 1))
    shapes = _get_expected_shapes(size, settings.class_token, side * SIZES[size].patch)
    keys = {parameter: naming.keys(parameter) for parameter in shapes}
    expected = {key for names in keys.values() for key in names}
    unexpected = {key for key in tensors.keys() - expected if not _is_unused(key, naming)}
    network = f"ViT {size!r} ({naming.library})"
    check_keys(path, expected - tensors.keys(), unexpected, network=network, config_key=_SIZE_KEY)
    flat = {
        parameter: _read_parameter(path, {key: tensors[key] for key in keys[parameter]}, parameter, shape, size)
        for parameter, shape in shapes.items()
    }
    flat["embed/position"] = resize_positions(
        flat["embed/position"], image_size // SIZES[size].patch, prefix=int(settings.class_token)
    )
    return PretrainedViT(settings, {"params": traverse_util.unflatten_dict(flat, sep="/"), "batch_stats": {}})


def resize_positions(
    position: Float[np.ndarray, "tokens width"], side: int, *, prefix: int
) -> Float[np.ndarray, "new_tokens width"]:
    """Resizes position embeddings of a square grid to `side` x `side` patches, by antialiased bicubic interpolation.

    This matches timm; transformers does not antialias.

    Args:
        position: embeddings of `prefix` tokens without a grid position, followed by the patches in row-major order.
        side: number of patches per side of the new grid.
        prefix: 1 with a class token, 0 without.
    """
    old_side = math.isqrt(position.shape[0] - prefix)
    if old_side == side:
        return position
    grid = position[prefix:].reshape(old_side, old_side, -1)
    resized = np.asarray(jax.image.resize(grid, (side, side, grid.shape[-1]), "cubic", antialias=True))
    return np.concatenate([position[:prefix], resized.reshape(side * side, -1)])


@functools.cache
def _get_expected_shapes(size: str, has_class_token: bool, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all parameters by path."""
    model = VisionTransformer(size, has_class_token)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    params = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


@dataclass(frozen=True)
class _OpenedWeights:
    """The image tower in a weight file, without the prefix of its keys, and their naming scheme."""

    path: Path
    tensors: dict[str, Tensor]
    naming: _Naming
    timm_config: dict[str, Any]


def _open(weights: str) -> _OpenedWeights:
    choices = (
        "neither a local file or folder, nor a hub name such as 'timm/vit_small_patch16_224.augreg_in21k_ft_in1k' or "
        "'google/siglip-base-patch16-224'"
    )
    path = locate_weights(weights, TORCH_NAMED_ENDINGS, choices)
    file = open_weights(path)
    namings = {f"{naming.modules['embed/patches']}.weight": naming for naming in (_TIMM, _VIT, _SIGLIP)}
    network = select_network(path, file.tensors, list(namings))
    if network is None:
        known = ", ".join(f"{naming.library} ({stem!r})" for stem, naming in namings.items())
        raise WeightsError(
            f"{path} has no weights of a supported ViT: expected a key of {known}, with any prefix, got "
            f"{format_keys(file.tensors)}"
        )
    return _OpenedWeights(path, network.tensors, namings[network.stem], file.timm_config)


def _is_unused(key: str, naming: _Naming) -> bool:
    """Returns whether a key does not affect the features."""
    return bool(re.fullmatch(naming.ignored, key) or UNUSED_KEYS.fullmatch(key))


def _read_settings(opened: _OpenedWeights, size: str) -> ViTSettings:
    path, tensors, naming = opened.path, opened.tensors, opened.naming
    config = read_sibling_json(path, "config.json") or opened.timm_config
    if naming is _TIMM:
        # timm uses the exact GELU even for SigLIP's B/16, which was trained with the tanh approximation.
        model, epsilon = get_section({"model_args": {}, **config}, "model_args", path), 1e-6
        heads, activation = model.get("num_heads"), model.get("act_layer", "gelu")
        mean, std = _read_timm_scaling(path, config)
    else:
        model = get_section(config, "vision_config", path)
        heads, epsilon = model.get("num_attention_heads"), get_number(model, "layer_norm_eps", 1e-6, path)
        activation = model.get("hidden_act", "gelu" if naming is _VIT else "gelu_pytorch_tanh")
        mean, std = _read_transformers_scaling(path, naming)
    if heads not in (None, SIZES[size].heads):
        raise WeightsError(
            f"{path}: config.json specifies {heads} heads, but ViT {size!r} has {SIZES[size].heads}; does {_SIZE_KEY} "
            "match the weights?"
        )
    if not isinstance(activation, str) or activation not in _GELU:
        raise WeightsError(
            f"{path}: unsupported activation {activation!r} in config.json; expected one of {', '.join(_GELU)}"
        )
    return ViTSettings(
        class_token=bool(naming.class_token) and naming.class_token in tensors,
        gelu=_GELU[activation],
        norm_epsilon=float(epsilon),
        mean=tuple(255.0 * value for value in mean),
        std=tuple(255.0 * value for value in std),
        source=f"{path} ({naming.library})",
    )


def _read_timm_scaling(path: Path, config: Mapping[str, Any]) -> tuple[Triple, Triple]:
    """Returns the mean and standard deviation that normalise pixels in 0..1."""
    pixels = get_section(config, "pretrained_cfg", path)
    if "mean" in pixels and "std" in pixels:
        return get_triple(pixels, "mean", (), path), get_triple(pixels, "std", (), path)
    if re.fullmatch(_TIMM_INCEPTION_SCALING, str(config.get("architecture") or path.stem)):
        return _INCEPTION_MEAN, _INCEPTION_STD
    raise WeightsError(
        f"{path}: unknown input scaling of the timm weights; put timm's config.json next to the file, or name the file "
        "after the timm model (vit_small_patch16_224.augreg_in21k_ft_in1k...)"
    )


def _read_transformers_scaling(path: Path, naming: _Naming) -> tuple[Triple, Triple]:
    """Returns the mean and standard deviation that normalise pixels in 0..1."""
    pixels = read_sibling_json(path, "preprocessor_config.json")
    if "image_mean" in pixels and "image_std" in pixels:
        return get_triple(pixels, "image_mean", (), path), get_triple(pixels, "image_std", (), path)
    if naming is _SIGLIP:
        return _INCEPTION_MEAN, _INCEPTION_STD
    raise WeightsError(
        f"{path}: unknown input scaling of the weights; put the checkpoint's preprocessor_config.json next to the file"
    )


def _read_parameter(
    path: Path, tensors: Mapping[str, Tensor], parameter: str, shape: tuple[int, ...], size: str
) -> np.ndarray:
    """Reads tensors of the file and converts them to our parameter at the path `parameter`."""
    array = None
    try:
        if sum(math.prod(tensor.shape) for tensor in tensors.values()) == math.prod(shape):  # before data is read
            array = np.concatenate([_arrange(tensor.read(), parameter) for tensor in tensors.values()], axis=-1)
    except (ValueError, IndexError):  # invalid number of dimensions
        array = None
    if array is None or array.shape != shape:
        names = " and ".join(f"{key!r} {tuple(tensor.shape)}" for key, tensor in tensors.items())
        raise WeightsError(
            f"{path}: {names} does not match {parameter} {shape} of ViT {size!r}; does {_SIZE_KEY} match the weights?"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _arrange(array: np.ndarray, parameter: str) -> np.ndarray:
    """Converts an array to our layout."""
    if parameter == "embed/patches/kernel":  # from [width, 3, patch height, patch width]
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    if parameter == "embed/class_token":
        return array.reshape(-1)
    if parameter == "embed/position":
        return array.reshape(-1, array.shape[-1])
    return array.T if parameter.endswith("/kernel") else array
