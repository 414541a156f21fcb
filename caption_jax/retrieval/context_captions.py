"""Context in training and evaluation: captions of the training images that an index holds nearest to each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caption_jax.errors import ConfigError
from caption_jax.retrieval.neighbours import ImageId, read_neighbours
from caption_jax.runs.experiment import Experiment
from input_pipeline.context import ContextCaptions
from input_pipeline.records import DataError

KINDS = ("retrieved", "none", "shuffled")


def usual_kind(experiment: Experiment) -> str:
    """The context that a run is trained and judged with: "retrieved", or "none" where the model takes none."""
    return "retrieved" if experiment.spec.model.context.slots else "none"


def context_protocol(experiment: Experiment, kind: str) -> dict[str, str]:
    """What a protocol says of the context; nothing where the model takes none."""
    return {"context": kind} if experiment.spec.model.context.slots else {}


def open_context(experiment: Experiment, split_name: str, kind: str) -> ContextCaptions | None:
    """The context of the images of a split, from the neighbours stored in `config.data.context`.

    Args:
        experiment: the run.
        split_name: the split.
        kind: "retrieved"; "none"; or "shuffled", for a look at what captions owe to the context: each image has that of
            the next one.

    Returns:
        None for "none".

    Raises:
        MissingFileError: there are no neighbours of that split.
        DataError: they are of another index, or of other images.
        ConfigError: an unknown kind, or one that the run's model does not take.
    """
    spec = experiment.spec
    slots, folder = spec.model.context.slots, spec.data.context
    if kind not in KINDS:
        raise ConfigError(f"context is {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    if not slots:
        raise ConfigError(f"context is {kind!r}, but this run's model takes none (config.model.context.slots=0)")
    neighbours = read_neighbours(folder, split_name, at_least=slots)
    ids = experiment.split(split_name).image_ids
    if missing := [image_id for image_id in ids if image_id not in neighbours]:
        raise DataError(
            f"config.data.context={folder} has no neighbours of image {missing[0]} of the split {split_name!r}: they "
            f"are of other images; find those of these with --mode=neighbours --split={split_name}"
        )
    near = {image_id: neighbours[image_id] for image_id in ids}
    return ContextCaptions(
        _moved_on(near) if kind == "shuffled" else near,
        experiment.split("train"),
        slots,
        experiment.description.vocabulary,
        experiment.description.model_settings.max_length,
        spec.model.context.dropout,
    )


def _moved_on(neighbours: Mapping[ImageId, Sequence[ImageId]]) -> dict[ImageId, list[ImageId]]:
    """Gives each image the neighbours of the next one, without itself."""
    given = [*neighbours.values()]
    pairs = zip(neighbours, [*given[1:], *given[:1]], strict=True)
    return {image_id: [other for other in near if other != image_id] for image_id, near in pairs}
