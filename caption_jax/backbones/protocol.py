"""What a run needs of an image backbone; docs/extending.md shows one from start to end. Imports no Flax."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from flax import linen as nn
    from jax.typing import DTypeLike

    from caption_jax.ops.forms import Ops

Triple = tuple[float, float, float]

# Settings that a run keeps elsewhere, in preprocessing.json, or not at all.
_NOT_THE_NETWORK = ("mean", "std", "source")


class Settings(Protocol):
    """What a network must share with the one that its weights were trained in; a frozen dataclass.

    The run stores it as JSON, so all fields are numbers, strings, booleans or tuples of them.

    Attributes:
        mean: of the red, green and blue channel, in 0..255.
        std: likewise; the network's input is (pixel - mean) / std.
        source: origin of the settings, for the log.
    """

    mean: Triple
    std: Triple
    source: str


# Properties of the protocols are described among their class's attributes, hence D102 at each.


class Pretrained(Protocol):
    """Weights, read into the names and layouts of the module.

    Attributes:
        variables: the module's collections, `params` and, where it has any, `batch_stats`.
        source: origin of the weights, for the log.
    """

    @property
    def variables(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102


class Backbone(Protocol):
    """An image backbone: a frozen dataclass whose fields are the keys of `config.model.encoder`.

    Its `__post_init__` checks them, and raises ValueError or ConfigError. It is made wherever a config is read, so its
    module imports no Flax before `load` or `build`.

    Attributes:
        weights: what `settings` and `load` read; "" for a random initialisation. The meaning of others is the
            backbone's own.
        settings_class: class of `settings()`. Its fields have defaults: those of random weights.
        stage_names: the network's parts in order. The parameters of each are below its name: `<stage>/...`.
        batch_multiple: a training batch has to be a multiple of this many images, which normalise each other.
    """

    weights: str
    settings_class: ClassVar[type[Settings]]

    @property
    def stage_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def batch_multiple(self) -> int: ...  # noqa: D102

    def check_image_size(self, image_size: int) -> None:
        """Checks the side of the images, in pixels, where the config is read. A backbone for any size can leave it out.

        Raises:
            ValueError: the network does not take images of that size; the message names ones that it takes.
        """

    def check_batch(self, images: int, trained_norms: Set[str]) -> None:
        """Checks a training batch before the first step. A backbone for any number of images can leave it out.

        Args:
            images: of a microbatch, over all devices.
            trained_norms: paths within the module of submodules whose `scale` and `bias` are trained at some step.

        Raises:
            ValueError: the network cannot be trained on so many; the message names the field and what to set it to.
        """

    def settings(self) -> Settings:
        """The settings of `weights`, without reading the arrays.

        Raises:
            WeightsError: there are no such weights, or they are another network's.
        """

    def load(self, image_size: int) -> Pretrained:
        """The arrays of `weights`, for images of `image_size` x `image_size` pixels.

        Raises:
            WeightsError: there are no such weights, or they are another network's.
        """

    def build(self, settings: Any, *, frozen_norms: Set[str], dtype: DTypeLike, ops: Ops) -> nn.Module:
        """The network, a linen module with float32 parameters.

        It is called as `module(images, train=..., start_after="", stop_after="")`. Images are normalised,
        [batch, height, width, 3], or the output of the stage `start_after`; the result is [batch, h, w, channels], or
        the output of the stage `stop_after`, whatever its shape behind the batch. Outside training every image has the
        result that it has alone. A `batch_stats` collection may hold running statistics; random numbers come from the
        stream "dropout".

        What follows from parameters being frozen is the network's affair: their gradients are not used, and in addition
        a batch norm whose scale and bias are frozen should keep to its stored statistics, and a stage whose norms are
        all frozen give in training what it gives outside: the feature cache takes its place.

        Args:
            settings: an instance of `settings_class`.
            frozen_norms: paths within the module ("stem/norm") of submodules whose `scale` and `bias` are both frozen.
            dtype: of computation.
            ops: form of the operations in `caption_jax.ops`, for a network that uses them.
        """

    def fits(self, other: Backbone) -> bool:
        """Whether the weights of a run with the backbone `other` are weights of this network."""

    def network_key(self, settings: Any) -> dict[str, Any]:
        """All but the weights that decides the network's output outside training, as JSON: a key of cached features."""


def stored_settings(settings: Settings) -> dict[str, Any]:
    """The settings of the network alone, as a run stores them: mean and deviation are kept with its preprocessing."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in _NOT_THE_NETWORK}


def restored_settings(backbone: Backbone, stored: Mapping[str, Any], mean: Triple, std: Triple, source: str) -> Any:
    """The reverse of `stored_settings`; a setting that was added since has its default."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return backbone.settings_class(**fields, mean=tuple(mean), std=tuple(std), source=source)


def stages_up_to(stage_names: Sequence[str], name: str) -> tuple[str, ...]:
    """The stages from the first to the one called `name`; none for "".

    Raises:
        ValueError: there is no such stage; the message lists the names.
    """
    if name and name not in stage_names:
        raise ValueError(f"there is no stage {name!r}; choose one of {', '.join(stage_names)}")
    return tuple(stage_names[: stage_names.index(name) + 1]) if name else ()
