"""Device topologies by name ("v5e:16x16", "cpu:8"), for compilation without the devices."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

import jax

from caption_jax.errors import ConfigError
from caption_jax.planning.chips import CHIPS, Chip
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
        """Returns the devices to compile for. TPU devices support compilation only.

        Raises:
            MissingPackageError: the TPU compiler is not installed. The message contains the command that installs it.
            ConfigError: the compiler does not support the slice, or JAX was started with fewer CPU devices.
        """
        return self._cpu_devices() if self.chip is None else self._tpu_devices()

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


def parse_topology(name: str) -> Topology:
    """Parses the name of a topology, such as "v5e:16x16" or "cpu:8".

    Args:
        name: name of a chip and shape of a slice, or "cpu" and number of devices, separated by a colon.

    Raises:
        ConfigError: the name is invalid. The message contains examples of valid names.
    """
    if not name:
        raise ConfigError(f"--topology must name the devices to plan for; examples: {_examples()}")
    kind, _, shape = name.partition(":")
    if kind not in (_CPU, *CHIPS):
        expected = ", ".join((_CPU, *CHIPS))
        raise ConfigError(f"--topology={name!r}: unknown chip {kind!r}; expected one of {expected} ({_examples()})")
    dimensions = 1 if kind == _CPU else CHIPS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        form = "a number of devices" if kind == _CPU else f"a {dimensions}-dimensional slice"
        raise ConfigError(f"--topology={name!r}: expected {form} after '{kind}:'; examples: {_examples()}")
    return Topology(name, CHIPS.get(kind), tuple(map(int, shape.split("x"))))


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


def _examples() -> str:
    """Returns examples of valid names, for error messages."""
    shapes = {2: "16x16", 3: "4x4x4"}
    return ", ".join([f"{_CPU}:8", *(f"{chip.name}:{shapes[chip.dimensions]}" for chip in CHIPS.values())])
