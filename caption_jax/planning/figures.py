"""The JSON figures of a compiled program: what `--mode=plan` writes, and what tests check the programs against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

from caption_jax.planning.cost import Cost


def program_figures(cost: Cost, mesh: jax.sharding.Mesh, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Per-chip figures of a program, under the keys documented in `docs/workdir.md`.

    Args:
        cost: cost of the program.
        mesh: mesh that the program was compiled for, with an axis "data".
        parts: names of the model's modules, for `bytes_by_part`.
    """
    images = cost.images
    return {
        "images_per_chip": images,
        "compile_seconds": round(cost.seconds, 1),
        "memory": {
            "arguments": cost.arguments,
            "outputs": cost.outputs,
            "temporaries": cost.temporaries,
            "code": cost.code,
            "total": cost.memory,
        },
        "per_image": {
            "flops": cost.flops / images,
            "matrix_flops": cost.matrix_flops / images,
            "matrix_flops_by_dtype": {dtype: flops / images for dtype, flops in cost.matrix_flops_by_dtype.items()},
            "bytes": cost.bytes / images,
            "memory_bytes": cost.memory_bytes / images,
            "bytes_by_part": {part: cost.bytes_by_module(part) / images for part in parts},
        },
        "intensity": cost.matrix_flops / max(cost.memory_bytes, 1.0),
        "collectives": _collectives(cost, mesh, images * mesh.shape["data"]),
    }


def _collectives(cost: Cost, mesh: jax.sharding.Mesh, rows: int) -> list[dict[str, Any]]:
    """Collectives grouped by kind and mesh axis, largest first.

    Arrays with one row per image of the global batch count as gathered, whatever the kind: the compiler also implements
    a gather as a sum of arrays that are 0 except for each device's own rows. Weights with the same number of rows are
    counted by mistake; see `rows_like_weights`.
    """
    groups: dict[tuple[str, str], list] = {}
    for collective in cost.collectives:
        groups.setdefault((collective.kind, collective.axis(mesh.shape)), []).append(collective)
    grouped = [
        {
            "kind": kind,
            "axis": axis,
            "count": len(members),
            "bytes": sum(one.bytes for one in members),
            "gathered": sum(min(one.by_rows.get(rows, 0), one.bytes) for one in members),
            "sent": sum(one.sent for one in members),
            "sources": dict(Counter(one.source for one in members).most_common()),
        }
        for (kind, axis), members in groups.items()
    ]
    return sorted(grouped, key=lambda group: -group["bytes"])
