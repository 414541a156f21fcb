"""Device topologies by name ("v5e:16x16", "h100:8", "cpu:8"), for compilation without the devices."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from caption_jax.errors import ConfigError
from caption_jax.planning import gpu_targets
from caption_jax.planning.chips import CHIPS, Chip
from caption_jax.runtime.libraries import without_cuda_driver_messages
from input_pipeline.extras import require

_CPU = "cpu"
_COMPILE_ONLY_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU metadata server to query
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compilation does not use the chips, so it does not need exclusive access
    "TPU_MIN_LOG_LEVEL": "2",
}


@dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: name of the topology, such as "v5e:16x16".
        chip: chip type; None for CPU devices.
        shape: number of devices along each dimension.
    """

    name: str
    chip: Chip | None
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of devices."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> str:
        """Name of the dtype that `config.dtype="auto"` selects."""
        return "float32" if self.chip is None else "bfloat16"

    def devices(self) -> list[jax.Device]:
        """Returns the devices to compile for. TPUs and GPUs support compilation only.

        Raises:
            MissingPackageError: the compiler is not installed. The message contains the command that installs it.
            ConfigError: the compiler does not support the slice, or JAX was started with fewer CPU devices.
        """
        if self.chip is None:
            return self._cpu_devices()
        return self._tpu_devices() if self.chip.kind == "tpu" else self._gpu_devices()

    @property
    def compiler_options(self) -> dict[str, Any]:
        """XLA options for compilation without the devices."""
        is_gpu = self.chip is not None and self.chip.kind == "gpu"
        return gpu_targets.COMPILER_OPTIONS if is_gpu else {}

    def _cpu_devices(self) -> list[jax.Device]:
        devices = jax.devices(_CPU)
        if len(devices) < self.size:
            raise ConfigError(
                f"--topology={self.name} needs {self.size} CPU devices, but JAX was started with {len(devices)}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        return devices[: self.size]

    def _tpu_devices(self) -> list[jax.Device]:
        require(f"--topology={self.name}", "libtpu")  # contains the TPU compiler
        from jax.experimental import topologies

        for key, value in _COMPILE_ONLY_ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        options = {}
        if self.size == 1:  # the default assumes hosts with several chips
            options = {"chips_per_host_bounds": [1, 1, 1]}
        try:
            description = topologies.get_topology_desc(self.name, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(
                f"--topology={self.name} is not supported by the TPU compiler ({str(error).splitlines()[0]}); "
                f"examples: {_examples()}"
            ) from error
        return list(description.devices)

    def _gpu_devices(self) -> list[jax.Device]:
        require(f"--topology={self.name}", "jax_cuda12_plugin")  # and, as its requirement, XLA
        from jax.experimental import topologies

        with without_cuda_driver_messages():
            description = topologies.get_topology_desc(
                self.name,
                platform="cuda",
                target_config=gpu_targets.GPU_TARGETS[self.chip.name].as_text(),
                topology=f"1x1x{self.size}",  # slices x hosts x GPUs per host
            )
        return list(description.devices)


def parse_topology(name: str) -> Topology:
    """Parses the name of a topology, such as "v5e:16x16", "v5litepod-256", "h100:8" or "cpu:8".

    Args:
        name: name of a TPU chip and shape of a slice, or name of a GPU or "cpu" and number of devices, separated by a
            colon; or a chip and number, as in the accelerator types "v5litepod-256" and "v6e-8" of Cloud TPU, or
            "h100-8".

    Raises:
        ConfigError: the name is invalid. The message contains examples of valid names.
    """
    if not name:
        raise ConfigError(f"--topology must name the devices to plan for; examples: {_examples()}")
    kind, _, shape = _expand_accelerator_type(name).partition(":")
    if kind not in (_CPU, *CHIPS):
        expected = ", ".join((_CPU, *CHIPS))
        raise ConfigError(f"--topology={name!r}: unknown chip {kind!r}; expected one of {expected} ({_examples()})")
    dimensions = 1 if kind == _CPU else CHIPS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        form = "a number of devices" if dimensions == 1 else f"a {dimensions}-dimensional slice"
        raise ConfigError(f"--topology={name!r}: expected {form} after '{kind}:'; examples: {_examples()}")
    return Topology(f"{kind}:{shape}", CHIPS.get(kind), tuple(map(int, shape.split("x"))))


def _expand_accelerator_type(name: str) -> str:
    """Returns the shape of devices that are named by their number, such as "v5e:16x16" for "v5litepod-256".

    The size of a v5p slice is its number of TensorCores, of which a chip has two.

    Raises:
        ConfigError: the number of chips is not a power of two, so the name does not determine the shape.
    """
    kind, _, number = name.partition("-")
    if kind in CHIPS and CHIPS[kind].kind == "gpu" and number:
        return f"{kind}:{number}"
    match = re.fullmatch(r"(v5litepod|v5e|v5p|v6e)-([1-9]\d*)", name)
    if not match:
        return name
    kind, count = match[1].replace("v5litepod", "v5e"), int(match[2])
    chips, cores = divmod(count, 2) if kind == "v5p" else (count, 0)
    exponent = chips.bit_length() - 1
    if cores or chips != 2**exponent:
        raise ConfigError(f"--topology={name!r}: state the shape of the slice instead; examples: {_examples()}")
    dimensions = CHIPS[kind].dimensions
    exponents = [(exponent + axis) // dimensions for axis in range(dimensions)]  # as close to a cube as possible
    if kind == "v5p" and chips <= 4:  # a host
        exponents = [exponent - exponent // 2, exponent // 2, 0]
    return f"{kind}:{'x'.join(str(2**exponent) for exponent in exponents)}"


def prepare(name: str | None) -> None:
    """Configures JAX for planning, without accelerators and with simulated CPU devices. Call before using JAX.

    Raises:
        ConfigError: the name is invalid.
    """
    topology = parse_topology(name or "")
    jax.config.update("jax_platforms", _CPU)
    jax.config.update("jax_enable_compilation_cache", False)  # the plan reports compile times
    if topology.chip is None and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", topology.size)
    with without_cuda_driver_messages():
        jax.devices()  # loads the plug-ins of JAX


def _examples() -> str:
    """Returns examples of valid names, for error messages."""
    shapes = {1: "8", 2: "16x16", 3: "4x4x4"}
    return ", ".join([f"{_CPU}:8", *(f"{chip.name}:{shapes[chip.dimensions]}" for chip in CHIPS.values())])
