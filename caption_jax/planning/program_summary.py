"""JSON report on a compiled program, which `--mode=plan` writes and tests check."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax

from caption_jax.planning.cost import Cost


def summarise_program(cost: Cost, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the costs of a program per chip, under the keys documented in `docs/workdir.md`.

    Args:
        cost: cost of the program.
        mesh: mesh that the program was compiled for, with an axis "data".
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
            "widened_matrix_flops": cost.widened_matrix_flops / images,
            "bytes": cost.bytes / images,
            "memory_bytes": cost.memory_bytes / images,
            "layout_bytes": cost.layout_bytes / images,
            "bytes_by_part": {part: count / images for part, count in cost.bytes_by_part.items()},
        },
        "intensity": cost.matrix_flops / max(cost.memory_bytes, 1.0),
        "host_transfers": cost.host_transfers,
        "collectives": _group_collectives(cost, mesh, images * mesh.shape["data"]),
    }


def _group_collectives(cost: Cost, mesh: jax.sharding.Mesh, batch_size: int) -> list[dict[str, Any]]:
    """Groups collectives by kind and mesh axis, largest first.

    Arrays with one row per image of the global batch count as gathered for all kinds of collectives, because the
    compiler may implement a gather as an all-reduce of arrays that are zero in the rows of other devices. Weights with
    that number of rows are also counted; see `gathered_may_include_weights`.
    """
    groups: dict[tuple[str, str], list] = {}
    for collective in cost.collectives:
        groups.setdefault((collective.kind, collective.axis(mesh.shape)), []).append(collective)
    entries = [
        {
            "kind": kind,
            "axis": axis,
            "count": len(group),
            "bytes": sum(collective.bytes for collective in group),
            "bytes_by_dtype": dict(sum((Counter(collective.bytes_by_dtype) for collective in group), Counter())),
            "gathered": sum(min(collective.bytes_by_rows.get(batch_size, 0), collective.bytes) for collective in group),
            "sent": sum(collective.bytes_sent for collective in group),
            "sources": dict(Counter(collective.source for collective in group).most_common()),
        }
        for (kind, axis), group in groups.items()
    ]
    return sorted(entries, key=lambda entry: -entry["bytes"])
