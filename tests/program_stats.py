"""Collectives, memory and FLOPs of a compiled program, as in the JSON output of `--mode=plan`."""

from __future__ import annotations

from typing import Any

import jax

from caption_jax.planning.cost import compute_cost
from caption_jax.planning.program_summary import summarise_program


def compute_stats(
    lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh | None = None, images: int = 1
) -> dict[str, Any]:
    """Returns the entry of a program in the output of `--mode=plan`.

    Args:
        lowered: Program before compilation.
        compiled: Program after compilation.
        mesh: Devices that the program runs on; a single device if None.
        images: Number of images per device.
    """
    if mesh is None:
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return summarise_program(compute_cost(lowered, compiled, images, mesh.size), mesh)
