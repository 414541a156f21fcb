"""Collectives, memory and FLOPs of any compiled program, as in a plan's JSON."""

from __future__ import annotations

from typing import Any

import jax

from caption_jax.planning.cost import cost_of
from caption_jax.planning.figures import program_figures


def figures_of(
    lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, mesh: jax.sharding.Mesh | None = None, images: int = 1
) -> dict[str, Any]:
    """The entry of the program in a plan.

    Args:
        lowered: the program before compilation.
        compiled: the program after compilation.
        mesh: devices it runs on; None for one device.
        images: images per device.
    """
    if mesh is None:
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    return program_figures(cost_of(lowered, compiled, images, mesh.size), mesh)
