"""Published specifications of accelerator chips."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of an accelerator chip.

    Attributes:
        name: name of the chip, such as "v5e" or "h100".
        memory: capacity of the high-bandwidth memory (HBM), in bytes.
        bandwidth: HBM bandwidth, in bytes per second.
        peak: peak bfloat16 FLOPs per second, without sparsity.
        interconnect: bandwidth to the other chips of a slice or host, in bytes per second, over all links and in both
            directions.
        dimensions: number of dimensions of a slice, such as 2 for "16x16" and 3 for "4x4x4"; 1 for GPUs.
        source: URL of the specification.
        kind: "tpu" or "gpu".
    """

    name: str
    memory: float
    bandwidth: float
    peak: float
    interconnect: float
    dimensions: int
    source: str
    kind: Literal["tpu", "gpu"] = "tpu"

    @property
    def balance(self) -> float:
        """Arithmetic intensity, in FLOPs per byte, at which compute and memory take the same time."""
        return self.peak / self.bandwidth


_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_GPU_DOCS = "https://www.nvidia.com/en-us/data-center/"

# "GB" in the specifications is taken as 10^9 bytes. Where versions of a page differ, the lower value is used (v5e: 819
# GB/s or 800 GiB/s of bandwidth; v6e: 1,600 or 1,640 GB/s). The compiler treats 15.75 GiB of a v5e chip as usable.
# H100, H200 and A100 (80 GB) are the SXM versions with NVLink; L4 communicates over PCIe 4.0 x16.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16e9, 819e9, 197e12, 400e9, 2, _TPU_DOCS + "v5e"),
        Chip("v5p", 95e9, 2765e9, 459e12, 1200e9, 3, _TPU_DOCS + "v5p"),
        Chip("v6e", 32e9, 1600e9, 918e12, 800e9, 2, _TPU_DOCS + "v6e"),
        Chip("h100", 80e9, 3350e9, 989e12, 900e9, 1, _GPU_DOCS + "h100/", "gpu"),
        Chip("h200", 141e9, 4800e9, 989e12, 900e9, 1, _GPU_DOCS + "h200/", "gpu"),
        Chip("a100", 80e9, 2039e9, 312e12, 600e9, 1, _GPU_DOCS + "a100/", "gpu"),
        Chip("l4", 24e9, 300e9, 121e12, 64e9, 1, _GPU_DOCS + "l4/", "gpu"),
    )
}
