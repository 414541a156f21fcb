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
_COMPILER_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU metadata server to query
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the compiler uses no chip, so other processes may
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
        """The dtype that `config.dtype` "auto" selects."""
        return "float32" if self.chip is None else "bfloat16"

    def devices(self) -> list[jax.Device]:
        """Devices for which programs can be compiled; TPU devices cannot be used for anything else.

        Raises:
            MissingPackageError: the TPU compiler is not installed. The message contains the command to install it.
            ConfigError: the compiler does not support the slice, or JAX was started with fewer CPU devices.
        """
        return self._cpus() if self.chip is None else self._tpus()

    def _cpus(self) -> list[jax.Device]:
        devices = jax.devices(_CPU)
        if len(devices) < self.size:
            raise ConfigError(
                f"--topology={self.name} needs {self.size} CPU devices, but JAX was started with {len(devices)}; set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        return devices[: self.size]

    def _tpus(self) -> list[jax.Device]:
        require(f"--topology={self.name}", "libtpu")  # the TPU's compiler
        from jax.experimental import topologies

        for key, value in _COMPILER_ALONE.items():
            os.environ.setdefault(key, value)
        options = {}
        if self.size == 1:  # a single chip of a host with several
            options = {"chips_per_host_bounds": [1, 1, 1]}
        try:
            description = topologies.get_topology_desc(self.name, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(
                f"--topology={self.name} is not supported by the TPU compiler ({str(error).splitlines()[0]}); "
                f"examples: {examples()}"
            ) from error
        return list(description.devices)


def parse_topology(name: str) -> Topology:
    """Parses a topology: a chip or "cpu", a colon, and the shape of a slice or the number of CPU devices.

    Raises:
        ConfigError: the name is invalid. The message lists valid ones.
    """
    if not name:
        raise ConfigError(f"--topology must name the devices to plan for; examples: {examples()}")
    kind, _, shape = name.partition(":")
    if kind not in (_CPU, *CHIPS):
        expected = ", ".join((_CPU, *CHIPS))
        raise ConfigError(f"--topology={name!r}: unknown chip {kind!r}; expected one of {expected} ({examples()})")
    dimensions = 1 if kind == _CPU else CHIPS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        form = "a number of devices" if kind == _CPU else f"a slice of {dimensions} dimensions"
        raise ConfigError(f"--topology={name!r}: expected {form} after '{kind}:'; examples: {examples()}")
    return Topology(name, CHIPS.get(kind), tuple(map(int, shape.split("x"))))


def prepare(name: str | None) -> None:
    """Configures JAX, before its first use, to plan for a topology: uses no accelerator and simulates CPU devices.

    Raises:
        ConfigError: the name is invalid.
    """
    topology = parse_topology(name or "")
    jax.config.update("jax_platforms", _CPU)
    jax.config.update("jax_enable_compilation_cache", False)  # because compile times are reported
    if topology.chip is None and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", topology.size)


def examples() -> str:
    """Examples of valid names, for messages."""
    by_dimensions = {2: "16x16", 3: "4x4x4"}
    return ", ".join([f"{_CPU}:8", *(f"{chip.name}:{by_dimensions[chip.dimensions]}" for chip in CHIPS.values())])
