"""What one chip of each kind holds and can do, as its maker publishes it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of accelerator chip.

    Attributes:
        name: as Cloud TPU calls it.
        memory: bytes of high-bandwidth memory.
        bandwidth: of that memory, bytes a second.
        peak: bfloat16 FLOPs a second.
        links: bytes a second to other chips of the slice, all links and both directions together.
        dimensions: of a slice's topology: 2 for "16x16", 3 for "4x4x4".
        source: page of the figures.
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    links: float
    dimensions: int
    source: str

    @property
    def balance(self) -> float:
        """FLOPs a byte of memory traffic at which computing and reading take the same time."""
        return self.peak / self.bandwidth


_DOCS = "https://docs.cloud.google.com/tpu/docs/"

# "GB" of the pages are taken as 10^9 bytes, and the lower figure where two editions of a page differ (v5e: 819 GB/s or
# 800 GiB/s of bandwidth; v6e: 1,600 or 1,640 GB/s). The compiler itself counts 15.75 GiB of a v5e chip as usable.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16e9, 819e9, 197e12, 400e9, 2, _DOCS + "v5e"),
        Chip("v5p", 95e9, 2765e9, 459e12, 1200e9, 3, _DOCS + "v5p"),
        Chip("v6e", 32e9, 1600e9, 918e12, 800e9, 2, _DOCS + "v6e"),
    )
}
