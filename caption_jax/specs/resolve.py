"""Resolution of config values that depend on the data."""

from __future__ import annotations

import dataclasses

from caption_jax.specs.run_spec import RunSpec


@dataclasses.dataclass(frozen=True)
class DatasetFacts:
    """Properties of the data that the resolved spec depends on.

    Attributes:
        train_images: number of images in the training split.
    """

    train_images: int


def resolve(spec: RunSpec, facts: DatasetFacts) -> RunSpec:
    """Replaces epochs, and zeros that mean "once per epoch", with numbers of steps.

    The number of steps per epoch is the number of full batches of training images, at least 1.
    """
    train = spec.train
    steps_per_epoch = max(facts.train_images // spec.data.batch_size, 1)
    return dataclasses.replace(
        spec,
        train=dataclasses.replace(
            train,
            steps=train.steps or max(round(train.epochs * steps_per_epoch), 1),
            eval_every=train.eval_every or steps_per_epoch,
            checkpoint_every=train.checkpoint_every or steps_per_epoch,
        ),
    )
