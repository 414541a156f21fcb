"""From batches of the loader to the devices: packed into rows without pads where the run's steps take those."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from caption_jax.errors import ConfigError
from caption_jax.parameters.sharding import put_batch
from caption_jax.specs import RunSpec
from input_pipeline.packing import pack_captions

Batch = dict[str, np.ndarray]


def batch_placer(spec: RunSpec, mesh: jax.sharding.Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    """Returns what puts a training batch on the devices, its captions packed where `config.train.packing` says so.

    There is a row for each device that holds a part of the batch, so that no token leaves its device.

    Raises:
        ConfigError: packing is no known choice, or cannot be had.
    """
    if not _packs(spec, mesh):
        return lambda batch: put_batch(batch, mesh)
    rows = mesh.shape["data"]

    def place(batch: Batch) -> dict[str, jax.Array]:
        return put_batch({**batch, **pack_captions(batch["tokens"], batch["mask"], rows)}, mesh)

    return place


def _packs(spec: RunSpec, mesh: jax.sharding.Mesh) -> bool:
    choice, processes, slices = spec.train.packing, jax.process_count(), spec.optimizer.accumulation
    if choice == "never":
        return False
    if processes > 1 or slices > 1:  # their parts of a batch would differ in size
        if choice == "always":
            raise ConfigError(
                f'config.train.packing="always" cannot be had in {processes} processes with '
                f'config.optimizer.accumulation={slices}: set it to "never", or run one process without accumulation'
            )
        return False
    return choice == "always" or mesh.devices.flat[0].platform == "cpu"
