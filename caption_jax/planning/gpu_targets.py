"""Descriptions of GPUs for XLA, which compiles for them without a GPU, a driver or CUDA libraries."""

from __future__ import annotations

from dataclasses import dataclass

# Without a GPU, kernels cannot be timed, so XLA uses the default configuration of each.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class GpuTarget:
    """Properties of a GPU that XLA compiles for, as the CUDA driver reports them.

    Attributes:
        description: name of the GPU.
        capability: CUDA compute capability, (major, minor).
        multiprocessors: number of streaming multiprocessors.
        threads: maximum number of resident threads per multiprocessor.
        shared_memory: bytes of shared memory per multiprocessor.
        l2_cache: bytes of L2 cache.
        bandwidth: memory bandwidth in bytes per second.
        memory: usable bytes of device memory.
        clock: clock rate in GHz.
    """

    description: str
    capability: tuple[int, int]
    multiprocessors: int
    threads: int
    shared_memory: int
    l2_cache: int
    bandwidth: int
    memory: int
    clock: float

    def as_text(self) -> str:
        """Returns the description in XLA's text format (`GpuTargetConfigProto`)."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_core: {self.shared_memory}
  shared_memory_per_block_optin: {self.shared_memory - 1024}
  threads_per_core_limit: {self.threads}
  core_count: {self.multiprocessors}
  fpus_per_core: {64 if self.capability == (8, 0) else 128}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth}
  l2_cache_size: {self.l2_cache}
  clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{self.description}"
"""


_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

GPU_TARGETS = {
    "h100": GpuTarget("NVIDIA H100 80GB HBM3", (9, 0), 132, 2048, 228 * _KIB, 50 * _MIB, 3350 * 10**9, 79 * _GIB, 1.98),
    "h200": GpuTarget("NVIDIA H200", (9, 0), 132, 2048, 228 * _KIB, 50 * _MIB, 4800 * 10**9, 139 * _GIB, 1.98),
    "a100": GpuTarget("NVIDIA A100-SXM4-80GB", (8, 0), 108, 2048, 164 * _KIB, 40 * _MIB, 2039 * 10**9, 79 * _GIB, 1.41),
    "l4": GpuTarget("NVIDIA L4", (8, 9), 58, 1536, 100 * _KIB, 48 * _MIB, 300 * 10**9, 22 * _GIB, 2.04),
}
