"""EfficientNet B0-B7 (Tan and Le, 2019) and EfficientNet-Lite 0-4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from caption_jax.models.backbones.efficientnet_variants import Stage, Variant, get_variant
from caption_jax.models.batch_norm import BatchNorm
from caption_jax.models.layers import Dense
from caption_jax.ops.depthwise import Padding, explicit_padding
from caption_jax.ops.implementations import FAST, Ops

_FAN_OUT_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _get_activation(name: str) -> Callable[[Array], Array]:
    return {"swish": nn.swish, "relu6": nn.relu6}[name]


@dataclass(frozen=True)
class BlockSettings:
    """Settings shared by all blocks and convolutions of a network.

    `padding` and `norm_epsilon` depend on the origin of the weights. They are 'same' and 1e-3 for weights trained in
    TensorFlow, and 'symmetric' and usually 1e-5 for weights trained in PyTorch. The paths in `frozen_norms` are
    relative to the module that the settings are passed to.
    """

    norm_group_size: int = 0
    norm_momentum: float = 0.99
    norm_epsilon: float = 1e-3
    frozen_norms: Set[str] = frozenset()
    padding: Padding = "same"
    activation: str = "swish"
    squeeze_excite: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    def for_submodule(self, name: str) -> BlockSettings:
        """Returns the settings of the submodule `name`, with `frozen_norms` relative to it."""
        prefix = f"{name}/"
        return replace(
            self,
            frozen_norms=frozenset(path.removeprefix(prefix) for path in self.frozen_norms if path.startswith(prefix)),
        )

    def make_norm(self, name: str, *, linear: bool = False) -> BatchNorm:
        """Creates a batch norm with these settings, including the activation unless `linear`."""
        return BatchNorm(
            group_size=self.norm_group_size,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            activation="linear" if linear else self.activation,
            frozen=name in self.frozen_norms,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            ops=self.ops,
            name=name,
        )


class Stem(nn.Module):
    """3 x 3 convolution with stride 2, followed by norm and activation."""

    channels: int
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], *, train: bool) -> Float[Array, "batch h w channels"]:
        """Returns features at half the resolution."""
        settings = self.settings
        x = StemConv(self.channels, settings, name="conv")(x)
        return settings.make_norm("norm")(x, train=train)


class StemConv(nn.Module):
    """3 x 3 convolution with stride 2, with a kernel of shape [3, 3, inputs, channels] and no bias."""

    channels: int
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width inputs"]) -> Float[Array, "batch h w channels"]:
        """Returns the convolution of `x`."""
        settings = self.settings
        kernel = self.param("kernel", _FAN_OUT_INIT, (3, 3, x.shape[-1], self.channels), settings.param_dtype)
        padding = explicit_padding(x.shape[1], x.shape[2], 3, 2, settings.padding)
        return settings.ops.convolve(x.astype(settings.dtype), kernel, stride=2, padding=padding)


class Pointwise(nn.Module):
    """1 x 1 convolution, followed by norm and, unless `linear`, activation."""

    channels: int
    settings: BlockSettings
    linear: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w inputs"], scales: Float[Array, "batch inputs"] | None = None, *, train: bool
    ) -> Float[Array, "batch h w channels"]:
        """Returns features at the same resolution. The channels of `x` are first multiplied by `scales`."""
        x = PointwiseConv(self.channels, self.settings, name="conv")(x, scales)
        return self.settings.make_norm("norm", linear=self.linear)(x, train=train)


class PointwiseConv(nn.Module):
    """1 x 1 convolution, with a kernel of shape [inputs, channels] and no bias."""

    channels: int
    settings: BlockSettings

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w inputs"], scales: Float[Array, "batch inputs"] | None = None
    ) -> Float[Array, "batch h w channels"]:
        """Returns the convolution of `x`, whose channels are first multiplied by `scales`."""
        settings = self.settings
        kernel = self.param("kernel", _FAN_OUT_INIT, (x.shape[-1], self.channels), settings.param_dtype)
        x = x.astype(settings.dtype)
        if self.has_variable("int8", "kernel"):  # see `stored_dtypes.restore`
            x = x if scales is None else x * scales[:, None, None, :]
            return settings.ops.int8_product(x, self.get_variable("int8", "kernel")).astype(settings.dtype)
        if scales is None:
            return settings.ops.pointwise_conv(x, kernel)
        return settings.ops.scaled_pointwise_conv(x, scales, kernel)


class Depthwise(nn.Module):
    """Depthwise convolution, followed by norm and activation."""

    kernel: int
    stride: int
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c"], *, train: bool) -> Float[Array, "batch h w c"]:
        """Returns features at 1 / stride of the resolution."""
        x = DepthwiseConv(self.kernel, self.stride, self.settings, name="conv")(x)
        return self.settings.make_norm("norm")(x, train=train)


class DepthwiseConv(nn.Module):
    """Depthwise convolution, with a kernel of shape [size, size, channels] and no bias."""

    kernel: int
    stride: int
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c"]) -> Float[Array, "batch h w c"]:
        """Returns the convolution of `x`."""
        settings = self.settings
        shape = (self.kernel, self.kernel, x.shape[-1])
        init = nn.initializers.normal(math.sqrt(2.0) / self.kernel)
        kernel = self.param("kernel", init, shape, settings.param_dtype)
        x = x.astype(settings.dtype)
        return settings.ops.depthwise_conv(x, kernel, stride=self.stride, padding=settings.padding)


class SqueezeExcite(nn.Module):
    """Computes a weight for each channel from the means of all channels over the image (Hu et al., 2018)."""

    hidden_channels: int
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch c"]:
        """Returns weights in (0, 1), in the dtype of the settings."""
        settings = self.settings
        dtypes = {"dtype": settings.dtype, "param_dtype": settings.param_dtype}
        dense_settings = {"kernel_init": _FAN_OUT_INIT, "ops": settings.ops, **dtypes}
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32).astype(settings.dtype)
        hidden = Dense(self.hidden_channels, name="reduce", **dense_settings)(pooled)
        hidden = _get_activation(settings.activation)(hidden)
        return nn.sigmoid(Dense(x.shape[-1], name="expand", **dense_settings)(hidden))


class Block(nn.Module):
    """Inverted residual block (Sandler et al., 2018): expand, depthwise, squeeze-excite, project.

    It has a residual connection if its input and output have the same shape.
    """

    stage: Stage
    stride: int
    drop_path: float
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c"], *, train: bool) -> Float[Array, "batch h w channels"]:
        """Returns the features of the block. Training with `drop_path` requires the RNG stream "dropout"."""
        settings, stage, residual = self.settings, self.stage, x
        inputs = x.shape[-1]
        if stage.expand != 1:
            x = Pointwise(inputs * stage.expand, settings.for_submodule("expand"), name="expand")(x, train=train)
        depthwise = Depthwise(stage.kernel, self.stride, settings.for_submodule("depthwise"), name="depthwise")
        x = depthwise(x, train=train)
        weights = None
        if settings.squeeze_excite:
            weights = SqueezeExcite(max(1, inputs // 4), settings, name="squeeze")(x)
        project = Pointwise(stage.channels, settings.for_submodule("project"), linear=True, name="project")
        x = project(x, weights, train=train)
        if self.stride != 1 or inputs != stage.channels:
            return x
        if train and self.drop_path > 0 and not self._is_frozen():
            x = drop_path(self.make_rng("dropout"), x, self.drop_path)
        return x + residual

    def _is_frozen(self) -> bool:
        parts = {"expand", "depthwise", "project"} if self.stage.expand != 1 else {"depthwise", "project"}
        return {f"{part}/norm" for part in parts} <= self.settings.frozen_norms


class StageBlocks(nn.Module):
    """Blocks of a stage. The first one applies the stride and changes the number of channels."""

    stage: Stage
    drop_paths: tuple[float, ...]
    settings: BlockSettings

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width c"], *, train: bool) -> Float[Array, "batch h w channels"]:
        """Returns the features of the stage."""
        for index, rate in enumerate(self.drop_paths):
            stride = self.stage.stride if index == 0 else 1
            name = f"block_{index}"
            x = Block(self.stage, stride, rate, self.settings.for_submodule(name), name=name)(x, train=train)
        return x


class EfficientNet(nn.Module):
    """EfficientNet up to its last feature map, without pooling, dropout or classifier.

    The parameter paths are `stem/{conv,norm}/...`, `head/{conv,norm}/...`, and for block 0 of stage 1
    `stage_1/block_0/{expand,depthwise,project}/{conv/kernel,norm/scale,norm/bias}` and
    `stage_1/block_0/squeeze/{reduce,expand}/{kernel,bias}`.

    Attributes:
        variant: a key of `VARIANTS`.
        norm_group_size: number of images that share batch-norm statistics in training; 0 for the whole batch.
        norm_momentum: decay rate of the running statistics.
        drop_path: probability that an image skips the last block (stochastic depth, Huang et al., 2016); it increases
            linearly from 0 at the first block. A block whose norms are all frozen is never skipped.
        frozen_norms: paths within this module ('stem/norm', 'stage_1/block_0/expand/norm') of norms that use their
            stored statistics in training.
        padding: 'same' (as in TensorFlow) or 'symmetric' (as in PyTorch).
        norm_epsilon: epsilon of the batch norms.
        fine_stage: stage whose output, at a higher resolution, is appended to the channels of the last one (see
            `append_finer_cells`); "" for none.
        dtype: computation dtype; statistics are always float32.
        param_dtype: dtype of the parameters.
        ops: implementation of the operations.
    """

    variant: str = "b0"
    norm_group_size: int = 0
    norm_momentum: float = 0.99
    drop_path: float = 0.0
    frozen_norms: Set[str] = frozenset()
    padding: Padding = "same"
    norm_epsilon: float = 1e-3
    fine_stage: str = ""
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    ops: Ops = FAST

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width inputs"],
        *,
        train: bool,
        start_after: str = "",
        stop_after: str = "",
    ) -> Float[Array, "batch h w channels"]:
        """Returns features of normalised images: [batch, height / 32, width / 32, 1280] for B0.

        Args:
            images: normalised pixels, or the output of the stage `start_after`.
            train: enables batch statistics in the norms and stochastic depth.
            start_after: runs only the stages after this one ("stem", "stage_1", ..., "head").
            stop_after: runs only the stages up to this one, and returns its output.

        Raises:
            ValueError: the variant or a stage is unknown, or `start_after` is a stage after `fine_stage`.
        """
        variant = get_variant(self.variant)
        settings = BlockSettings(
            self.norm_group_size,
            self.norm_momentum,
            self.norm_epsilon,
            self.frozen_norms,
            self.padding,
            variant.activation,
            variant.squeeze_excite,
            self.dtype,
            self.param_dtype,
            self.ops,
        )
        stages: list[nn.Module] = [Stem(variant.stem_channels, settings.for_submodule("stem"), name="stem")]
        rates = self._compute_drop_rates(variant)
        for index, stage in enumerate(variant.scaled_stages, start=1):
            name, stage_rates, rates = f"stage_{index}", rates[: stage.blocks], rates[stage.blocks :]
            stages.append(StageBlocks(stage, stage_rates, settings.for_submodule(name), name=name))
        stages.append(Pointwise(variant.head_channels, settings.for_submodule("head"), name="head"))
        x = images.astype(self.dtype)
        first, end = len(variant.stages_up_to(start_after)), len(variant.stages_up_to(stop_after)) or len(stages)
        if self.fine_stage and not stop_after:
            fine_end = len(variant.stages_up_to(self.fine_stage))
            if first > fine_end:
                raise ValueError(f"the output of fine_stage={self.fine_stage!r} is not part of that of {start_after!r}")
            fine = x = _run(stages[first:fine_end], x, train)
            return append_finer_cells(_run(stages[fine_end:], x, train), fine)
        return _run(stages[first:end], x, train)

    def _compute_drop_rates(self, variant: Variant) -> tuple[float, ...]:
        blocks = sum(stage.blocks for stage in variant.scaled_stages)
        return tuple(self.drop_path * index / max(blocks - 1, 1) for index in range(blocks))


def _run(stages: Sequence[nn.Module], x: Array, train: bool) -> Array:
    for stage in stages:
        x = stage(x, train=train)
    return x


def append_finer_cells(
    x: Float[Array, "batch h w channels"], fine: Float[Array, "batch height width fine_channels"]
) -> Float[Array, "batch h w all_channels"]:
    """Appends the features of all finer cells that a cell consists of to its channels.

    A finer grid that is not a multiple of the other one is padded with zeros at the end: 15 cells are the pairs of 8.
    """
    batch, height, width, _ = x.shape
    rows, columns = -(-fine.shape[1] // height), -(-fine.shape[2] // width)  # finer cells per cell
    padding = (0, rows * height - fine.shape[1]), (0, columns * width - fine.shape[2])
    fine = jnp.pad(fine, ((0, 0), *padding, (0, 0)))
    fine = fine.reshape(batch, height, rows, width, columns, -1).swapaxes(2, 3)
    return jnp.concatenate([x, fine.reshape(batch, height, width, -1)], axis=-1)


class Classifier(nn.Module):
    """ImageNet classification head: global average pooling and a dense layer.

    Used to verify that weights were loaded correctly.
    """

    classes: int = 1000

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w channels"]) -> Float[Array, "batch classes"]:
        """Returns logits."""
        return nn.Dense(self.classes, name="dense")(jnp.mean(features, axis=(1, 2)))


def drop_path(key: Key[Array, ""], x: Float[Array, "batch h w c"], rate: float) -> Float[Array, "batch h w c"]:
    """Zeroes each image's residual branch with probability `rate`, and scales up the others to preserve the mean."""
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0], 1, 1, 1))
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
