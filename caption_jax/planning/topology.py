"""Names of groups of devices ("v5e:16x16", "cpu:8"), and the devices they name, none of which need be there."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass

import jax

from caption_jax.errors import ConfigError, MissingPackageError
from caption_jax.planning.chips import CHIPS, Chip

_CPU = "cpu"
_COMPILER_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine with TPUs to be asked about them
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the compiler takes no chip, so it may run beside what does
    "TPU_MIN_LOG_LEVEL": "2",
}


@dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
        name: what it was called.
        chip: what its devices are; None for CPU devices.
        shape: devices along each dimension.
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
        """What `config.dtype` "auto" means there."""
        return "float32" if self.chip is None else "bfloat16"

    def devices(self) -> list[jax.Device]:
        """Devices that programs can be compiled for, and nothing else if they are a TPU's.

        Raises:
            MissingPackageError: a TPU's compiler is not installed. Says how to install it.
            ConfigError: the compiler knows no such slice; or JAX has started with fewer CPU devices.
        """
        return self._cpus() if self.chip is None else self._tpus()

    def _cpus(self) -> list[jax.Device]:
        found = jax.devices(_CPU)
        if len(found) < self.size:
            raise ConfigError(
                f"--topology={self.name} needs {self.size} CPU devices, but JAX has started with {len(found)}: set "
                f"XLA_FLAGS=--xla_force_host_platform_device_count={self.size}"
            )
        return found[: self.size]

    def _tpus(self) -> list[jax.Device]:
        if importlib.util.find_spec("libtpu") is None:
            raise MissingPackageError(
                f"--topology={self.name} needs the TPU's compiler, which is not installed: pip install -e '.[tpu]'"
            )
        from jax.experimental import topologies

        for key, value in _COMPILER_ALONE.items():
            os.environ.setdefault(key, value)
        options = {}
        if self.size == 1:  # of a host with several chips
            options = {"chips_per_host_bounds": [1, 1, 1]}
        try:
            found = topologies.get_topology_desc(self.name, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            raise ConfigError(
                f"--topology={self.name}: the TPU's compiler refuses this slice ({str(error).splitlines()[0]}); "
                f"{examples()} are some that there are"
            ) from error
        return list(found.devices)


def parse_topology(name: str) -> Topology:
    """The topology called `name`: a chip or "cpu", a colon, and a slice's shape or a number of CPU devices.

    Raises:
        ConfigError: no such name. Says which there are.
    """
    if not name:
        raise ConfigError(f"--topology names the devices to plan for: {examples()}")
    kind, _, shape = name.partition(":")
    if kind not in (_CPU, *CHIPS):
        raise ConfigError(f"--topology={name!r}: there is no {kind!r}, only {', '.join((_CPU, *CHIPS))}: {examples()}")
    dimensions = 1 if kind == _CPU else CHIPS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        form = "a number of devices" if kind == _CPU else f"a slice of {dimensions} dimensions"
        raise ConfigError(f"--topology={name!r}: after '{kind}:' comes {form}: {examples()}")
    return Topology(name, CHIPS.get(kind), tuple(map(int, shape.split("x"))))


def prepare(name: str | None) -> None:
    """Readies JAX, before it has started, to plan for a topology: no accelerator is taken, CPU devices are simulated.

    Raises:
        ConfigError: no such name.
    """
    topology = parse_topology(name or "")
    jax.config.update("jax_platforms", _CPU)
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are asked for
    if topology.chip is None and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", topology.size)


def examples() -> str:
    """Some names, for messages."""
    by_dimensions = {2: "16x16", 3: "4x4x4"}
    return ", ".join([f"{_CPU}:8", *(f"{chip.name}:{by_dimensions[chip.dimensions]}" for chip in CHIPS.values())])
