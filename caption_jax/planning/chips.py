"""Published specifications of accelerator chips."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of an accelerator chip.

    Attributes:
        name: name of the chip in Cloud TPU, such as "v5e".
        memory: capacity of the high-bandwidth memory (HBM), in bytes.
        bandwidth: HBM bandwidth, in bytes per second.
        peak: peak bfloat16 FLOPs per second.
        interconnect: bandwidth to the other chips of a slice, in bytes per second, over all links and in both
            directions.
        dimensions: number of dimensions of a slice, such as 2 for "16x16" and 3 for "4x4x4".
        source: URL of the specification.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    interconnect: float
    dimensions: int
    source: str

    @property
    def balance(self) -> float:
        """Arithmetic intensity, in FLOPs per byte, at which compute and memory take the same time."""
        return self.peak / self.bandwidth


_DOCS = "https://docs.cloud.google.com/tpu/docs/"

# "GB" in the specifications is taken as 10^9 bytes. Where versions of a page differ, the lower value is used (v5e: 819
# GB/s or 800 GiB/s of bandwidth; v6e: 1,600 or 1,640 GB/s). The compiler treats 15.75 GiB of a v5e chip as usable.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16e9, 819e9, 197e12, 400e9, 2, _DOCS + "v5e"),
        Chip("v5p", 95e9, 2765e9, 459e12, 1200e9, 3, _DOCS + "v5p"),
        Chip("v6e", 32e9, 1600e9, 918e12, 800e9, 2, _DOCS + "v6e"),
    )
}
