"""Maps our module paths of EfficientNet to the parameter names of five libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from caption_jax.models.backbones.efficientnet_variants import Variant

_TORCH_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclass(frozen=True)
class Naming:
    """The naming scheme of one library.

    Attributes:
        library: name of the library.
        stem: key of the stem kernel, which identifies the library that wrote a file.
        modules: function that returns the library's module names for a variant, by our module paths
            ('stage_1/block_0/depthwise/norm').
        classifier: the library's name for the final dense layer.
        leaves: the library's parameter names by ours; 'norm/bias' overrides 'bias' for norms.
        separator: separator between module and parameter names.
        layout: kernel layout, 'torch' [out, in, height, width] or 'keras' [height, width, in, out].
        ignored: suffixes of keys that are not used.
    """

    library: str
    stem: str
    modules: Callable[[Variant], dict[str, str]]
    classifier: str
    leaves: dict[str, str] = field(default_factory=lambda: _TORCH_LEAVES)
    separator: str = "."
    layout: Literal["torch", "keras"] = "torch"
    ignored: tuple[str, ...] = ("num_batches_tracked",)

    def key(self, modules: dict[str, str], path: str) -> str:
        """Returns the library's key for our parameter or statistic at `path` ('head/norm/scale').

        Args:
            modules: `self.modules(variant)`.
            path: our path.
        """
        module, leaf = path.rsplit("/", 1)
        name = self.leaves.get(f"{module.rsplit('/', 1)[-1]}/{leaf}", self.leaves[leaf])
        return modules[module] + self.separator + name

    def arrange(self, array: np.ndarray, path: str) -> np.ndarray:
        """Converts an array to our layout, where 1 x 1 kernels are matrices and depthwise kernels [k, k, channels]."""
        if not path.endswith("/kernel"):
            return array
        if self.layout == "torch" and array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)  # [height, width, in, out]; a depthwise kernel has in = 1
        elif self.layout == "torch":
            array = array.T
        if path.endswith("depthwise/conv/kernel"):
            return array[:, :, 0, :] if self.layout == "torch" else array[:, :, :, 0]
        return array if path.startswith("stem/") or array.ndim == 2 else array[0, 0]


@dataclass(frozen=True)
class _Block:
    """A block of the network.

    Attributes:
        path: our module path.
        stage: 0-based index of the stage.
        index: 0-based index within the stage.
        number: 0-based index within the network.
        has_expansion: whether the block has an expansion convolution.
    """

    path: str
    stage: int
    index: int
    number: int
    has_expansion: bool


def _list_blocks(variant: Variant) -> Iterator[_Block]:
    number = 0
    for stage_index, stage in enumerate(variant.scaled_stages):
        for index in range(stage.blocks):
            yield _Block(f"stage_{stage_index + 1}/block_{index}", stage_index, index, number, stage.expand != 1)
            number += 1


def _map_blocks(variant: Variant, name_modules: Callable[[_Block], dict[str, str]]) -> dict[str, str]:
    """Returns the library's module names by our paths, for the modules that exist in each block of the variant."""
    missing = () if variant.squeeze_excite else ("squeeze",)
    modules = {}
    for block in _list_blocks(variant):
        skipped = (*missing, *(() if block.has_expansion else ("expand",)))
        for part, name in name_modules(block).items():
            if not part.startswith(skipped):
                modules[f"{block.path}/{part}"] = name
    return modules


def _map_torchvision_modules(variant: Variant) -> dict[str, str]:
    def name_modules(block: _Block) -> dict[str, str]:
        base = f"features.{block.stage + 1}.{block.index}.block"
        parts = ["expand"] * block.has_expansion + ["depthwise"] + ["squeeze"] * variant.squeeze_excite + ["project"]
        modules = {}
        for index, part in enumerate(parts):
            layers = {"reduce": "fc1", "expand": "fc2"} if part == "squeeze" else {"conv": "0", "norm": "1"}
            modules |= {f"{part}/{layer}": f"{base}.{index}.{name}" for layer, name in layers.items()}
        return modules

    head = len(variant.stages) + 1
    stem_and_head = {"stem/conv": "features.0.0", "stem/norm": "features.0.1"}
    stem_and_head |= {"head/conv": f"features.{head}.0", "head/norm": f"features.{head}.1"}
    return stem_and_head | _map_blocks(variant, name_modules)


def _map_timm_modules(variant: Variant) -> dict[str, str]:
    def name_modules(block: _Block) -> dict[str, str]:
        base = f"blocks.{block.stage}.{block.index}"
        # In blocks without expansion, the first norm is the depthwise norm, and timm names the projection conv_pw.
        depthwise, project = (2, 3) if block.has_expansion else (1, 2)
        return {
            "expand/conv": f"{base}.conv_pw",
            "expand/norm": f"{base}.bn1",
            "depthwise/conv": f"{base}.conv_dw",
            "depthwise/norm": f"{base}.bn{depthwise}",
            "squeeze/reduce": f"{base}.se.conv_reduce",
            "squeeze/expand": f"{base}.se.conv_expand",
            "project/conv": f"{base}.{'conv_pwl' if block.has_expansion else 'conv_pw'}",
            "project/norm": f"{base}.bn{project}",
        }

    stem_and_head = {"stem/conv": "conv_stem", "stem/norm": "bn1", "head/conv": "conv_head", "head/norm": "bn2"}
    return stem_and_head | _map_blocks(variant, name_modules)


def _map_transformers_modules(variant: Variant) -> dict[str, str]:
    def name_modules(block: _Block) -> dict[str, str]:
        base = f"encoder.blocks.{block.number}"
        return {
            "expand/conv": f"{base}.expansion.expand_conv",
            "expand/norm": f"{base}.expansion.expand_bn",
            "depthwise/conv": f"{base}.depthwise_conv.depthwise_conv",
            "depthwise/norm": f"{base}.depthwise_conv.depthwise_norm",
            "squeeze/reduce": f"{base}.squeeze_excite.reduce",
            "squeeze/expand": f"{base}.squeeze_excite.expand",
            "project/conv": f"{base}.projection.project_conv",
            "project/norm": f"{base}.projection.project_bn",
        }

    stem_and_head = {"stem/conv": "embeddings.convolution", "stem/norm": "embeddings.batchnorm"}
    stem_and_head |= {"head/conv": "encoder.top_conv", "head/norm": "encoder.top_bn"}
    return stem_and_head | _map_blocks(variant, name_modules)


def _map_efficientnet_pytorch_modules(variant: Variant) -> dict[str, str]:
    def name_modules(block: _Block) -> dict[str, str]:
        base = f"_blocks.{block.number}"
        return {
            "expand/conv": f"{base}._expand_conv",
            "expand/norm": f"{base}._bn0",
            "depthwise/conv": f"{base}._depthwise_conv",
            "depthwise/norm": f"{base}._bn1",
            "squeeze/reduce": f"{base}._se_reduce",
            "squeeze/expand": f"{base}._se_expand",
            "project/conv": f"{base}._project_conv",
            "project/norm": f"{base}._bn2",
        }

    stem_and_head = {"stem/conv": "_conv_stem", "stem/norm": "_bn0", "head/conv": "_conv_head", "head/norm": "_bn1"}
    return stem_and_head | _map_blocks(variant, name_modules)


def map_keras_modules(variant: Variant) -> dict[str, str]:
    """Returns Keras's layer names by our module paths, in the order in which Keras builds the layers."""

    def name_modules(block: _Block) -> dict[str, str]:
        base = f"block{block.stage + 1}{chr(ord('a') + block.index)}"
        return {
            "expand/conv": f"{base}_expand_conv",
            "expand/norm": f"{base}_expand_bn",
            "depthwise/conv": f"{base}_dwconv",
            "depthwise/norm": f"{base}_bn",
            "squeeze/reduce": f"{base}_se_reduce",
            "squeeze/expand": f"{base}_se_expand",
            "project/conv": f"{base}_project_conv",
            "project/norm": f"{base}_project_bn",
        }

    stem = {"stem/conv": "stem_conv", "stem/norm": "stem_bn"}
    return stem | _map_blocks(variant, name_modules) | {"head/conv": "top_conv", "head/norm": "top_bn"}


KERAS = Naming(
    "Keras",
    "stem_conv/kernel",
    map_keras_modules,
    "predictions",
    leaves={
        "kernel": "kernel",
        "scale": "gamma",
        "bias": "bias",
        "norm/bias": "beta",
        "mean": "moving_mean",
        "var": "moving_variance",
    },
    separator="/",
    layout="keras",
    ignored=("normalization/mean", "normalization/variance", "normalization/count"),
)
TORCHVISION = Naming("torchvision", "features.0.0.weight", _map_torchvision_modules, "classifier.1")
TIMM = Naming("timm", "conv_stem.weight", _map_timm_modules, "classifier")
TRANSFORMERS = Naming("transformers", "embeddings.convolution.weight", _map_transformers_modules, "classifier")
EFFICIENTNET_PYTORCH = Naming("efficientnet-pytorch", "_conv_stem.weight", _map_efficientnet_pytorch_modules, "_fc")

NAMINGS = (TORCHVISION, TIMM, TRANSFORMERS, EFFICIENTNET_PYTORCH, KERAS)
