"""The interface of image backbones; docs/extending.md has a complete example. Does not import Flax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from flax import linen as nn
    from jax.typing import DTypeLike

    from caption_jax.ops.implementations import Ops

Triple = tuple[float, float, float]

# Settings that are stored in preprocessing.json instead of model.json, or not stored at all.
_NOT_STORED = ("mean", "std", "source")


class Settings(Protocol):
    """Network and preprocessing settings that pretrained weights require; a frozen dataclass.

    Settings are stored as JSON, so all fields must be numbers, strings, booleans or tuples of them.

    Attributes:
        mean: mean of the RGB channels, in [0, 255].
        std: standard deviation of the RGB channels. The input of the network is (pixel - mean) / std.
        source: origin of the settings, for logging.
    """

    mean: Triple
    std: Triple
    source: str


class Pretrained(Protocol):
    """Pretrained weights, converted to the parameter tree of the module."""

    @property
    def variables(self) -> Mapping[str, Any]:
        """Variable collections of the module: `params` and, if it has any, `batch_stats`."""

    @property
    def source(self) -> str:
        """Origin of the weights, for logging."""


class Backbone(Protocol):
    """An image backbone: a frozen dataclass whose fields are the keys of `config.model.encoder`.

    Its `__post_init__` validates the fields and raises ValueError or ConfigError. Backbones are constructed whenever a
    config is read, so their modules must not import Flax before `load` or `build` is called.

    Attributes:
        weights: source of the pretrained weights, interpreted by the backbone; "" for random initialization.
        settings_class: class of `settings()`. The defaults of its fields apply to random weights.
    """

    weights: str
    settings_class: ClassVar[type[Settings]]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order. The parameters of a stage are under `<stage>/...`."""

    @property
    def batch_multiple(self) -> int:
        """Number of images that are normalized together; the training batch size must be a multiple."""

    def check_image_size(self, image_size: int) -> None:
        """Checks the height and width of images, in pixels, when the config is read. Optional.

        Raises:
            ValueError: the network does not support this image size. The message should suggest a supported one.
        """

    def check_batch(self, images: int, trained_norms: Set[str]) -> None:
        """Checks the training batch size before the first step. Optional.

        Args:
            images: number of images in a microbatch, over all devices.
            trained_norms: module paths of norms whose `scale` and `bias` are trained at some step.

        Raises:
            ValueError: the network cannot be trained with this batch size. The message should name the field and a
                valid value.
        """

    def settings(self) -> Settings:
        """Returns the settings of `weights`, without reading the arrays.

        Raises:
            WeightsError: the weights do not exist, or belong to another network.
        """

    def load(self, image_size: int) -> Pretrained:
        """Loads `weights` for images of `image_size` x `image_size` pixels.

        Raises:
            WeightsError: the weights do not exist, or belong to another network.
        """

    def build(self, settings: Any, *, frozen_norms: Set[str], dtype: DTypeLike, ops: Ops) -> nn.Module:
        """Builds the network, a linen module with float32 parameters.

        The module is called as `module(images, train=..., start_after="", stop_after="")`. The input is normalized
        images [batch, height, width, 3], or the output of stage `start_after`. The output is [batch, h, w, channels],
        or the output of stage `stop_after`, which may have any shape after the batch dimension. If `train` is False,
        the output of an image must not depend on the other images in the batch. Running statistics are stored in the
        `batch_stats` collection, and random numbers are drawn from the "dropout" stream.

        Gradients of frozen parameters are discarded. In addition, batch norms with frozen scale and bias should use
        their stored statistics in training. A stage whose norms are all frozen must return the same output in training
        and evaluation, because the feature cache may replace it.

        Args:
            settings: an instance of `settings_class`.
            frozen_norms: module paths, such as "stem/norm", of norms whose `scale` and `bias` are both frozen.
            dtype: compute dtype.
            ops: implementation of the ops in `caption_jax.ops`, for networks that use them.
        """

    def accepts_weights_of(self, other: Backbone) -> bool:
        """Whether weights of the backbone `other` can be loaded into this network."""

    def network_key(self, settings: Any) -> dict[str, Any]:
        """Everything except the weights that determines the output in evaluation, as a JSON key of cached features."""


def stored_settings(settings: Settings) -> dict[str, Any]:
    """Settings to store in model.json, without mean and standard deviation, which are stored with the preprocessing."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _NOT_STORED}


def restored_settings(backbone: Backbone, stored: Mapping[str, Any], mean: Triple, std: Triple, source: str) -> Any:
    """The inverse of `stored_settings`; settings added since the run was stored have their defaults."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return backbone.settings_class(**fields, mean=tuple(mean), std=tuple(std), source=source)


def stages_up_to(stage_names: Sequence[str], name: str) -> tuple[str, ...]:
    """Returns the stages up to and including `name`; empty if `name` is "".

    Raises:
        ValueError: the stage does not exist.
    """
    if name and name not in stage_names:
        raise ValueError(f"unknown stage {name!r}; expected one of {', '.join(stage_names)}")
    return tuple(stage_names[: stage_names.index(name) + 1]) if name else ()
