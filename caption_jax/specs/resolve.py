"""The second stage of a config: what depends on the data."""

from __future__ import annotations

import dataclasses

from caption_jax.specs.run_spec import RunSpec


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """What a run's settings depend on of its data.

    Attributes:
        train_images: images of the training split.
    """

    train_images: int


def resolve(spec: RunSpec, facts: DatasetFacts) -> RunSpec:
    """The spec with numbers of steps in place of epochs and of zeros that mean "once an epoch".

    An epoch is as many whole batches as the training images fill, at least one.
    """
    train = spec.train
    epoch = max(facts.train_images // spec.data.batch_size, 1)
    return dataclasses.replace(
        spec,
        train=dataclasses.replace(
            train,
            steps=train.steps or max(round(train.epochs * epoch), 1),
            eval_every=train.eval_every or epoch,
            checkpoint_every=train.checkpoint_every or epoch,
        ),
    )
