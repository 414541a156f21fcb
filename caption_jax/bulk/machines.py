"""The machines of a Ray cluster: what their workers get, and what happens when one is lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from caption_jax.errors import ConfigError, UserError


class WorkerError(UserError, RuntimeError):
    """A worker cannot go on."""


class LostMachineError(WorkerError):
    """A machine of the cluster is lost, and its workers with it."""


@dataclasses.dataclass(frozen=True)
class WorkerResources:
    """The number of workers, and what Ray reserves for each.

    Attributes:
        workers: number of workers.
        cpus: CPU cores of a worker.
        accelerators: options of `ray.remote`, such as `{"num_gpus": 1}`; empty on CPUs.
    """

    workers: int
    cpus: int
    accelerators: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def choose_resources(nodes: Sequence[Mapping[str, float]], workers: int) -> WorkerResources:
    """Chooses the resources of each worker: a GPU, all TPU chips of a host, or an equal part of the CPU cores.

    Args:
        nodes: resources of each node of the cluster, as Ray lists them.
        workers: number of workers; 0 for one per GPU, TPU host or, without either, per node.

    Raises:
        ConfigError: the cluster has no room for so many workers.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    hosts = [node["TPU"] for node in nodes if node.get("TPU")]
    if gpus or hosts:
        most, name = (gpus, "GPUs") if gpus else (len(hosts), "TPU hosts")
        if workers > most:
            raise ConfigError(f"--workers={workers}, but there are {most} {name}: each worker needs one")
        accelerators = {"num_gpus": 1} if gpus else {"resources": {"TPU": min(hosts)}}
        return WorkerResources(workers or most, 1, accelerators)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    workers = workers or len([count for count in cores if count])
    for cpus in range(max(cores, default=0), 0, -1):
        if sum(count // cpus for count in cores) >= workers:
            return WorkerResources(workers, cpus)
    raise ConfigError(f"--workers={workers}, but there are {sum(cores)} CPU cores: each worker needs one")


class Machines:
    """The machines on which workers run. Ray restarts the workers of a lost machine if the others have room for them.

    Args:
        nodes: descriptions of the machines, as `ray.nodes()` returns them.
        workers: see `choose_resources`.

    Attributes:
        resources: what each worker gets.

    Raises:
        ConfigError: see `choose_resources`.
    """

    def __init__(self, nodes: Sequence[Mapping[str, Any]], workers: int):
        alive = _select_alive(nodes)
        self._addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in alive}
        self.resources = choose_resources([node["Resources"] for node in alive], workers)

    def check(self, nodes: Sequence[Mapping[str, Any]], *, is_failed: bool = False) -> None:
        """Compares the machines with their present state, `nodes`.

        Args:
            nodes: see `Machines`.
            is_failed: whether workers have failed. Otherwise, they can go on if the other machines have room for them.

        Raises:
            LostMachineError: a machine is lost, and workers have failed or would be waited for forever.
        """
        alive = _select_alive(nodes)
        lost = self._addresses.keys() - {node["NodeID"] for node in alive}
        if lost and (is_failed or not self._has_room([node["Resources"] for node in alive])):
            addresses = ", ".join(sorted({self._addresses[node] for node in lost}))
            raise LostMachineError(f"Ray on {addresses} has ended or cannot be reached")

    def _has_room(self, nodes: Sequence[Mapping[str, float]]) -> bool:
        try:
            return choose_resources(nodes, self.resources.workers).cpus >= self.resources.cpus
        except ConfigError:
            return False


def _select_alive(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [node for node in nodes if node["Alive"]]
