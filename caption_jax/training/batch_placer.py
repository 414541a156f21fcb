"""Transfers training batches to the devices, after packing their captions if packing is enabled."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from caption_jax.errors import ConfigError
from caption_jax.parameters.sharding import put_batch
from caption_jax.specs import RunSpec
from input_pipeline.packing import pack_captions

Batch = dict[str, np.ndarray]


def make_batch_placer(spec: RunSpec, mesh: jax.sharding.Mesh) -> Callable[[Batch], dict[str, jax.Array]]:
    """Returns a function that transfers a training batch to the devices, packed according to `config.train.packing`.

    Captions are packed into one row per device on the data axis, so that each token is on the same device as its image.

    Raises:
        ConfigError: `config.train.packing` is unknown or not supported in this setup.
    """
    if not _is_packing_enabled(spec, mesh):
        return lambda batch: put_batch(batch, mesh)
    rows = mesh.shape["data"]

    def pack_and_put(batch: Batch) -> dict[str, jax.Array]:
        return put_batch({**batch, **pack_captions(batch["tokens"], batch["mask"], rows)}, mesh)

    return pack_and_put


def _is_packing_enabled(spec: RunSpec, mesh: jax.sharding.Mesh) -> bool:
    choice, processes, microbatches = spec.train.packing, jax.process_count(), spec.optimizer.grad_accum_steps
    if choice == "never":
        return False
    if processes > 1 or microbatches > 1:  # packed rows would differ in length between processes or microbatches
        if choice == "always":
            raise ConfigError(
                'config.train.packing="always" requires a single process and config.optimizer.grad_accum_steps=1, got '
                f'{processes} processes and config.optimizer.grad_accum_steps={microbatches}; set packing to "never"'
            )
        return False
    return choice == "always" or mesh.devices.flat[0].platform == "cpu"
