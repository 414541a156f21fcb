"""Parameter names of EfficientNet in five libraries, mapped to our module paths."""

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
        modules: for a variant, returns the library's module names by our module paths
            ('stage_1/block_0/depthwise/norm').
        leaves: the library's parameter names by ours; 'norm/bias' overrides 'bias' for norms.
        separator: separator between module and parameter names.
        layout: kernel layout, 'torch' [out, in, height, width] or 'keras' [height, width, in, out].
        classifier: the library's name of the final dense layer.
        ignored: suffixes of keys that are not needed.
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
        """Converts an array to our layout: 1 x 1 kernels are matrices, depthwise kernels are [k, k, channels]."""
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
    """Position of a block: stage, index within the stage, and index within the network, all from 0."""

    path: str
    stage: int
    index: int
    number: int
    expands: bool


def _blocks(variant: Variant) -> Iterator[_Block]:
    number = 0
    for index, stage in enumerate(variant.scaled_stages):
        for block in range(stage.blocks):
            yield _Block(f"stage_{index + 1}/block_{block}", index, block, number, stage.expand != 1)
            number += 1


def _block_modules(variant: Variant, names: Callable[[_Block], dict[str, str]]) -> dict[str, str]:
    """Returns the library's module names by our paths, for the modules that exist in each block of the variant."""
    absent = () if variant.squeeze_excite else ("squeeze",)
    modules = {}
    for block in _blocks(variant):
        skip = (*absent, *(() if block.expands else ("expand",)))
        for part, name in names(block).items():
            if not part.startswith(skip):
                modules[f"{block.path}/{part}"] = name
    return modules


def _torchvision(variant: Variant) -> dict[str, str]:
    def names(block: _Block) -> dict[str, str]:
        base = f"features.{block.stage + 1}.{block.index}.block"
        parts = ["expand"] * block.expands + ["depthwise"] + ["squeeze"] * variant.squeeze_excite + ["project"]
        modules = {}
        for index, part in enumerate(parts):
            layers = {"reduce": "fc1", "expand": "fc2"} if part == "squeeze" else {"conv": "0", "norm": "1"}
            modules |= {f"{part}/{layer}": f"{base}.{index}.{name}" for layer, name in layers.items()}
        return modules

    head = len(variant.stages) + 1
    ends = {"stem/conv": "features.0.0", "stem/norm": "features.0.1"}
    ends |= {"head/conv": f"features.{head}.0", "head/norm": f"features.{head}.1"}
    return ends | _block_modules(variant, names)


def _timm(variant: Variant) -> dict[str, str]:
    def names(block: _Block) -> dict[str, str]:
        base = f"blocks.{block.stage}.{block.index}"
        # In blocks without expansion, timm numbers the norms from the depthwise one and names the projection conv_pw.
        depthwise, project = (2, 3) if block.expands else (1, 2)
        return {
            "expand/conv": f"{base}.conv_pw",
            "expand/norm": f"{base}.bn1",
            "depthwise/conv": f"{base}.conv_dw",
            "depthwise/norm": f"{base}.bn{depthwise}",
            "squeeze/reduce": f"{base}.se.conv_reduce",
            "squeeze/expand": f"{base}.se.conv_expand",
            "project/conv": f"{base}.{'conv_pwl' if block.expands else 'conv_pw'}",
            "project/norm": f"{base}.bn{project}",
        }

    ends = {"stem/conv": "conv_stem", "stem/norm": "bn1", "head/conv": "conv_head", "head/norm": "bn2"}
    return ends | _block_modules(variant, names)


def _transformers(variant: Variant) -> dict[str, str]:
    def names(block: _Block) -> dict[str, str]:
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

    ends = {"stem/conv": "embeddings.convolution", "stem/norm": "embeddings.batchnorm"}
    ends |= {"head/conv": "encoder.top_conv", "head/norm": "encoder.top_bn"}
    return ends | _block_modules(variant, names)


def _efficientnet_pytorch(variant: Variant) -> dict[str, str]:
    def names(block: _Block) -> dict[str, str]:
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

    ends = {"stem/conv": "_conv_stem", "stem/norm": "_bn0", "head/conv": "_conv_head", "head/norm": "_bn1"}
    return ends | _block_modules(variant, names)


def keras_modules(variant: Variant) -> dict[str, str]:
    """Returns Keras's layer names by our module paths, in the order in which Keras builds the layers."""

    def names(block: _Block) -> dict[str, str]:
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
    return stem | _block_modules(variant, names) | {"head/conv": "top_conv", "head/norm": "top_bn"}


KERAS = Naming(
    "Keras",
    "stem_conv/kernel",
    keras_modules,
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
TORCHVISION = Naming("torchvision", "features.0.0.weight", _torchvision, "classifier.1")
TIMM = Naming("timm", "conv_stem.weight", _timm, "classifier")
TRANSFORMERS = Naming("transformers", "embeddings.convolution.weight", _transformers, "classifier")
EFFICIENTNET_PYTORCH = Naming("efficientnet-pytorch", "_conv_stem.weight", _efficientnet_pytorch, "_fc")

NAMINGS = (TORCHVISION, TIMM, TRANSFORMERS, EFFICIENTNET_PYTORCH, KERAS)
