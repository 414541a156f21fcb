"""Retrieved context for training and evaluation: captions of the training images nearest to each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caption_jax.errors import ConfigError
from caption_jax.retrieval.neighbours import ImageId, read_neighbours
from caption_jax.runs.experiment import Experiment
from input_pipeline.context import ContextCaptions
from input_pipeline.files import local_path
from input_pipeline.records import DataError

KINDS = ("retrieved", "none", "shuffled")


def default_kind(experiment: Experiment) -> str:
    """Returns the default kind of context, which is "retrieved", or "none" if the model takes no context."""
    return "retrieved" if experiment.spec.model.context.max_texts else "none"


def context_protocol(experiment: Experiment, kind: str) -> dict[str, str]:
    """Returns the context entry of an evaluation protocol, or {} if the model takes no context."""
    return {"context": kind} if experiment.spec.model.context.max_texts else {}


def open_context(experiment: Experiment, split_name: str, kind: str) -> ContextCaptions | None:
    """Opens the context of a split, from the neighbours stored in `config.data.context`.

    Args:
        experiment: the run.
        split_name: name of the split.
        kind: "retrieved", "none", or "shuffled", which assigns each image the context of the next image, to measure how
            much captions depend on the context.

    Returns:
        The context captions, or None if `kind` is "none".

    Raises:
        MissingFileError: no neighbours are stored for the split.
        DataError: the neighbours were computed for another index or for other images.
        ConfigError: the kind is unknown, or the model takes no context.
    """
    spec = experiment.spec
    max_texts, folder = spec.model.context.max_texts, spec.data.context
    if kind not in KINDS:
        raise ConfigError(f"context is {kind!r}; it must be one of {', '.join(KINDS)}")
    if kind == "none":
        return None
    if not max_texts:
        raise ConfigError(f"context is {kind!r}, but this run's model takes none (config.model.context.max_texts=0)")
    neighbours = read_neighbours(local_path(folder, "config.data.context"), split_name, at_least=max_texts)
    ids = experiment.split(split_name).image_ids
    if missing := [image_id for image_id in ids if image_id not in neighbours]:
        raise DataError(
            f"config.data.context={folder} has no neighbours of image {missing[0]} of the split {split_name!r}: "
            f"run --mode=neighbours --split={split_name} for these images"
        )
    selected = {image_id: neighbours[image_id] for image_id in ids}
    return ContextCaptions(
        _rotate(selected) if kind == "shuffled" else selected,
        experiment.split("train"),
        max_texts,
        experiment.description.vocabulary,
        experiment.description.model_settings.max_length,
        spec.model.context.dropout,
    )


def _rotate(neighbours: Mapping[ImageId, Sequence[ImageId]]) -> dict[ImageId, list[ImageId]]:
    """Assigns to each image the neighbours of the next image, except the image itself."""
    values = [*neighbours.values()]
    pairs = zip(neighbours, [*values[1:], *values[:1]], strict=True)
    return {image_id: [other_id for other_id in other_ids if other_id != image_id] for image_id, other_ids in pairs}
