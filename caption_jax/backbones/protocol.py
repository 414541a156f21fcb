"""The protocol of image backbones. Does not import Flax. See docs/extending.md for a complete example."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from flax import linen as nn
    from jax.typing import DTypeLike

    from caption_jax.ops.implementations import Ops

Triple = tuple[float, float, float]

# Settings that are not stored in model.json. `mean` and `std` are stored in preprocessing.json.
_EXCLUDED_SETTINGS = ("mean", "std", "source")


class Settings(Protocol):
    """Network and preprocessing settings that pretrained weights require, as a frozen dataclass.

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
    """Pretrained weights, converted to the variables of the linen module."""

    @property
    def variables(self) -> Mapping[str, Any]:
        """Variable collections of the module, `params` and, for batch norms, `batch_stats`."""

    @property
    def source(self) -> str:
        """Origin of the weights, for logging."""


class Backbone(Protocol):
    """An image backbone, as a frozen dataclass whose fields are the keys of `config.model.encoder`.

    Its `__post_init__` validates the fields and raises ValueError or ConfigError. Backbones are constructed whenever a
    config is read, so their modules must not import Flax before `load` or `build` is called.

    Attributes:
        weights: source of the pretrained weights, interpreted by the backbone; "" for random initialisation.
        settings_class: class that `settings()` returns. The defaults of its fields apply to random weights.
    """

    weights: str
    settings_class: ClassVar[type[Settings]]

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order. The parameters of a stage are under `<stage>/...`."""

    @property
    def batch_multiple(self) -> int:
        """Number of images that share norm statistics. The training batch size must be a multiple of it."""

    def check_image_size(self, image_size: int) -> None:
        """Checks the height and width of images, in pixels, when the config is read. Optional.

        Raises:
            ValueError: the network does not support this image size. The message should suggest a supported one.
        """

    def check_batch(self, images: int, trained_norms: Set[str]) -> None:
        """Checks the training batch size before the first step. Optional.

        Args:
            images: number of images in a microbatch, over all devices.
            trained_norms: module paths of norms whose `scale` or `bias` is trained at some step.

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

        The module is called as `module(images, train=..., start_after="", stop_after="")`. The input is normalised
        images [batch, height, width, 3], or the output of the stage `start_after`. The output is features
        [batch, h, w, channels], or the output of the stage `stop_after`, which may have any shape after the batch
        dimension. If `train` is False, the output for an image must not depend on the other images in the batch.
        Running statistics are stored in the `batch_stats` collection. The module may use the RNG stream "dropout".

        Gradients of frozen parameters are discarded by the training step. In addition, batch norms with frozen scale
        and bias should use their stored statistics in training. A stage whose norms are all frozen must return the same
        output in training and evaluation, because the feature cache may replace it.

        Args:
            settings: an instance of `settings_class`.
            frozen_norms: module paths, such as "stem/norm", of norms whose `scale` and `bias` are both frozen.
            dtype: computation dtype.
            ops: implementation of the operations in `caption_jax.ops`, for networks that use them.
        """

    def accepts_weights_of(self, other: Backbone) -> bool:
        """Whether weights of the backbone `other` can be loaded into this network."""

    def network_key(self, settings: Any) -> dict[str, Any]:
        """Returns the settings that determine the output in evaluation, as JSON values for the feature cache's key.

        The weights are not included, because the cache key has a separate entry for them.
        """


def stored_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings to store in model.json. Mean and standard deviation are stored with the preprocessing."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _EXCLUDED_SETTINGS}


def restored_settings(backbone: Backbone, stored: Mapping[str, Any], mean: Triple, std: Triple, source: str) -> Any:
    """Restores the settings from `stored_settings`. Fields missing from an older run get their defaults."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return backbone.settings_class(**fields, mean=tuple(mean), std=tuple(std), source=source)


def stages_up_to(stage_names: Sequence[str], name: str) -> tuple[str, ...]:
    """Returns the stages up to and including `name`, or none if it is "".

    Raises:
        ValueError: the stage is unknown.
    """
    if name and name not in stage_names:
        raise ValueError(f"unknown stage {name!r}; expected one of {', '.join(stage_names)}")
    return tuple(stage_names[: stage_names.index(name) + 1]) if name else ()
