"""Formats the results as a page of Markdown."""

from __future__ import annotations

from typing import Any


def make_page(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    cells = results["cells"]
    sections = [_describe_ceilings(cells.get("ceilings", {})), _describe_comparisons(cells)]
    sections.append(_describe_operations(cells.get("operations", {})))
    sections += [_describe_losses(cells.get("numerics", {})), _describe_profile(cells.get("profile", {}))]
    busy = [
        f"- `{name}`: {100 * cell['conditions']['other_processes']:.0f}%"
        for name, cell in cells.items()
        if cell.get("final") is False
    ]
    if busy:
        sections.append("Not final, because other processes used the cores of the host:\n\n" + "\n".join(busy))
    failed = [
        f"- `{name}`: {cell.get('error') or cell['skipped']}"
        for name, cell in cells.items()
        if {"error", "skipped"} & cell.keys()
    ]
    if failed:
        sections.append("Cells without results:\n\n" + "\n".join(failed))
    return "\n\n".join(filter(None, sections)) + "\n"


def _describe_ceilings(cell: dict[str, Any]) -> str:
    if "device" not in cell:
        return ""
    rows = [
        ("device", f"{cell['device']}, jax {cell['jax']}"),
        ("matrix product, bfloat16", f"{cell['bfloat16_flops_per_second'] / 1e12:.1f} TFLOP/s"),
        ("matrix product, float32", f"{cell['float32_flops_per_second'] / 1e12:.1f} TFLOP/s"),
        (
            "matrix product, float32, highest precision",
            f"{cell['float32_highest_flops_per_second'] / 1e12:.1f} TFLOP/s",
        ),
        ("memory, read and written", f"{cell['bytes_per_second'] / 1e9:.0f} GB/s"),
        ("images to the device", f"{cell['to_device_bytes_per_second'] / 1e9:.2f} GB/s"),
        ("images to the host", f"{cell['to_host_bytes_per_second'] / 1e9:.2f} GB/s"),
        ("round trip of a scalar", f"{cell['round_trip_seconds'] * 1e6:.0f} us"),
    ]
    return _table(("ceiling", "measured"), rows)


def _describe_comparisons(cells: dict[str, Any]) -> str:
    ceilings, rows = cells.get("ceilings", {}), []
    for name, cell in cells.items():
        if "ours" not in cell:
            continue
        peers = [f"{peer} {entry['peer']:.0f} ({entry['ratio']:.2f} x)" for peer, entry in cell["comparisons"].items()]
        rows.append(
            (f"`{name}`", f"{cell['ours']:.0f}", ", ".join(peers) or "", _describe_roofline(name, cell, ceilings))
        )
    return _table(("cell", "images/s", "peers (ratio, ours to peer)", "fraction of the roofline"), rows) if rows else ""


def _describe_roofline(name: str, cell: dict[str, Any], ceilings: dict[str, Any]) -> str:
    """Returns our speed as a fraction of the roofline given by the measured ceilings, and the limiting resource."""
    if "device" not in ceilings or not name.startswith(("train", "encoder")):
        return ""
    dtype = "bfloat16" if "bf16" in name else "float32"
    seconds = {
        "matrix products": cell["matrix_flops"] / ceilings[f"{dtype}_flops_per_second"],
        "memory": cell["bytes_accessed"] / ceilings["bytes_per_second"],
    }
    bound = max(seconds, key=seconds.get)
    # A run consists of several steps, but FLOPs and bytes are counted for a single step.
    seconds_per_step = cell["seconds"]["ours"] * cell["images_per_step"] / cell["images"]
    return f"{seconds[bound] / seconds_per_step:.2f} ({bound})"


def _describe_operations(cell: dict[str, Any]) -> str:
    rows = [
        (name, alternative, f"{value:.3f}" if isinstance(value, float) else str(value))
        for name, alternatives in cell.get("operations", {}).items()
        for alternative, value in alternatives.items()
    ]
    return _table(("operation", "alternative", "ms"), rows) if rows else ""


def _describe_losses(cell: dict[str, Any]) -> str:
    if "losses" not in cell:
        return ""
    rows = [
        (name, *(f"{row[key]:.6f}" if "last" in key or key == "first" else f"{row[key]:.1e}" for key in row))
        for name, row in cell["losses"].items()
    ]
    head = ("losses", "first step", "relative error", "last tenth", "largest relative error of the means of tenths")
    return f"Losses of {cell['steps']} updates on {cell['platform']}:\n\n" + _table(head, rows)


def _describe_profile(cell: dict[str, Any]) -> str:
    if "parts_ms" not in cell:
        return ""
    summary = (
        f"Training step, bfloat16: {cell['wall_ms']:.2f} ms, of which the device computes {cell['busy_fraction']:.0%}; "
        f"copies and transposes take {cell['copy_ms']:.2f} ms."
    )
    total = cell["device_ms"]
    parts = [(name, f"{value:.2f}", f"{value / total:.1%}") for name, value in cell["parts_ms"].items()]
    slowest = [(f"`{row['operation']}`", f"{row['ms']:.2f}", row["path"][-100:]) for row in cell["operations"][:20]]
    tables = _table(("part", "ms", "fraction"), parts), _table(("operation", "ms", "path"), slowest)
    return "\n\n".join((summary, *tables))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
