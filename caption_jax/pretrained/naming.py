"""How five libraries name the parts of an EfficientNet, part for part against our module paths."""

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
    """One library's names.

    Attributes:
        library: whose names they are.
        stem: key of the stem's kernel, by which a file is known as this library's.
        modules: our module paths ('stage_1/block_0/depthwise/norm') to theirs, for a variant.
        leaves: our parameter names to theirs; a norm's 'bias' may differ, then it stands under 'norm/bias'.
        separator: between a module and a parameter.
        layout: how kernels lie: 'torch' [out, in, height, width] or 'keras' [height, width, in, out].
        classifier: their name of the dense layer on top.
        ignored: endings of keys, and whole keys, that carry nothing we need.
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
        """Returns their key of our parameter or statistic `path` ('head/norm/scale'), given `modules(variant)`."""
        module, leaf = path.rsplit("/", 1)
        theirs = self.leaves.get(f"{module.rsplit('/', 1)[-1]}/{leaf}", self.leaves[leaf])
        return modules[module] + self.separator + theirs

    def arrange(self, array: np.ndarray, path: str) -> np.ndarray:
        """Returns their array laid out as ours at `path`: 1 x 1 kernels as matrices, depthwise ones as [k, k, c]."""
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
class _Place:
    """Where a block stands: its stage and place in it, and its number in the whole network."""

    path: str
    stage: int
    block: int
    number: int
    expands: bool


def _places(variant: Variant) -> Iterator[_Place]:
    number = 0
    for index, stage in enumerate(variant.scaled_stages):
        for block in range(stage.blocks):
            yield _Place(f"stage_{index + 1}/block_{block}", index, block, number, stage.expand != 1)
            number += 1


def _block_modules(variant: Variant, names: Callable[[_Place], dict[str, str]]) -> dict[str, str]:
    """Their module of each of our modules in each block, leaving out those that the variant does not have."""
    absent = () if variant.squeeze_excite else ("squeeze",)
    found = {}
    for place in _places(variant):
        skip = (*absent, *(() if place.expands else ("expand",)))
        for part, theirs in names(place).items():
            if not part.startswith(skip):
                found[f"{place.path}/{part}"] = theirs
    return found


def _torchvision(variant: Variant) -> dict[str, str]:
    def names(place: _Place) -> dict[str, str]:
        base = f"features.{place.stage + 1}.{place.block}.block"
        parts = ["expand"] * place.expands + ["depthwise"] + ["squeeze"] * variant.squeeze_excite + ["project"]
        found = {}
        for index, part in enumerate(parts):
            first, second = ("reduce", "expand") if part == "squeeze" else ("conv", "norm")
            their_first, their_second = ("fc1", "fc2") if part == "squeeze" else ("0", "1")
            found[f"{part}/{first}"] = f"{base}.{index}.{their_first}"
            found[f"{part}/{second}"] = f"{base}.{index}.{their_second}"
        return found

    head = len(variant.stages) + 1
    ends = {"stem/conv": "features.0.0", "stem/norm": "features.0.1"}
    ends |= {"head/conv": f"features.{head}.0", "head/norm": f"features.{head}.1"}
    return ends | _block_modules(variant, names)


def _timm(variant: Variant) -> dict[str, str]:
    def names(place: _Place) -> dict[str, str]:
        base = f"blocks.{place.stage}.{place.block}"
        # Where a block does not expand, timm counts its norms from the depthwise one and calls the projection conv_pw.
        depthwise, project = (2, 3) if place.expands else (1, 2)
        return {
            "expand/conv": f"{base}.conv_pw",
            "expand/norm": f"{base}.bn1",
            "depthwise/conv": f"{base}.conv_dw",
            "depthwise/norm": f"{base}.bn{depthwise}",
            "squeeze/reduce": f"{base}.se.conv_reduce",
            "squeeze/expand": f"{base}.se.conv_expand",
            "project/conv": f"{base}.{'conv_pwl' if place.expands else 'conv_pw'}",
            "project/norm": f"{base}.bn{project}",
        }

    ends = {"stem/conv": "conv_stem", "stem/norm": "bn1", "head/conv": "conv_head", "head/norm": "bn2"}
    return ends | _block_modules(variant, names)


def _transformers(variant: Variant) -> dict[str, str]:
    def names(place: _Place) -> dict[str, str]:
        base = f"encoder.blocks.{place.number}"
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
    def names(place: _Place) -> dict[str, str]:
        base = f"_blocks.{place.number}"
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
    """Returns our module paths to Keras's layer names, in the order in which Keras builds the layers."""

    def names(place: _Place) -> dict[str, str]:
        base = f"block{place.stage + 1}{chr(ord('a') + place.block)}"
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
