"""Prints the estimate of an epoch to the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARTS = ("chips", "links", "input")


def print_epoch(epoch: Mapping[str, Any]) -> None:
    """Prints the result of `estimate_epoch`."""
    captions = epoch["captions_per_image"]
    print(
        f"\nepoch of {epoch['pairs']:,} pairs: {epoch['images']:,} images with {captions} caption{'s' * (captions > 1)}"
    )
    for label, value in _format_epoch(epoch):
        print(f"  {label:<28} {value}")


def _format_epoch(epoch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of the table, as (label, value)."""
    basis = epoch["basis"]
    seconds = {"chips": epoch["chip_seconds"], "links": epoch["link_seconds"], "input": epoch["input_seconds"]}
    steps = f"{epoch['steps']:,} steps of {epoch['images_per_step']:,} images in {epoch['step_seconds'] * 1e3:.4g} ms"
    hours, stall = f"{epoch['hours']:.3g} h ({epoch['hours'] * 3600:,.0f} s)", f"{epoch['stall_seconds']:.3g} s"
    rows = [("time", f"{hours}: {steps}, and {stall} of checkpoints")]
    for part in _PARTS:
        rows.append((f"  {part}", f"{_format_seconds(seconds[part])} per step ({basis[part]})"))
    rows.append(("  not included", "start, compilation and evaluations"))
    if epoch["price"] is not None:
        rows.append(("cost", f"{epoch['price']:,.2f}: {epoch['chip_hours']:.3g} chip-hours, {basis['price']}"))
    cores = f"{epoch['host_cores']:,.1f} of all hosts together"
    rows.append(("host cores to feed the chips", f"{cores}; the run reads {epoch['images_per_second']:,.0f} images/s"))
    size = f"{epoch['checkpoints']:,} of {epoch['checkpoint_bytes'] / 1e6:,.4g} MB ({basis['checkpoints']})"
    rows.append(("checkpoints", size))
    rows.append(("  copied to the host", f"{epoch['copy_seconds']:.3g} s, during which training waits"))
    rows.append(("  written", f"{epoch['write_seconds']:.3g} s, during which training goes on"))
    rows.append(("reductions hide from", _describe_hiding(epoch)))
    return rows


def _describe_hiding(epoch: Mapping[str, Any]) -> str:
    images = epoch["hiding_images_per_chip"]
    if images is None:
        return "unknown on CPUs; set --link_bandwidth"
    return f"{images:,} image{'s' * (images > 1)} per chip; with fewer, the links take longer than the chips"


def _format_seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.4g} ms"
