"""The processes of a run on several hosts: how they are detected, and how they join `jax.distributed`."""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from absl import logging

from caption_jax.errors import ConfigError, ProcessesError
from caption_jax.runtime.coordinator_relay import start_relay
from caption_jax.runtime.exchange import wait_for_all
from caption_jax.runtime.liveness import HEARTBEAT_SECONDS, current_watch, start_watching
from caption_jax.runtime.rendezvous import meet

TIMEOUT_SECONDS = 300

_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MIN_JAX_HEARTBEAT_SECONDS = 300  # of JAX, which aborts the process, so `liveness` must come first
_METADATA_SECONDS = 5  # per attempt
_METADATA_ATTEMPTS = 3


@dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        kind: what started the processes, and where this was detected.
        process_id: index of this process.
        num_processes: number of processes.
        coordinator: HOST:PORT of process 0.
    """

    kind: str
    process_id: int
    num_processes: int
    coordinator: str

    def __str__(self) -> str:
        return f"{self.kind}: process {self.process_id} of {self.num_processes}, coordinator {self.coordinator}"


def join_processes(
    choice: str,
    timeout_seconds: int = TIMEOUT_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    *,
    saves_on_signal: bool = True,
) -> None:
    """Connects the processes of the run. Call before JAX initialises its devices.

    From then on, the end of one process ends all others; see `caption_jax.runtime.liveness`.

    Args:
        choice: "auto" to connect the processes that are detected, if any; "on" to require them; "off" to run alone.
        timeout_seconds: how long to wait for the other processes.
        heartbeat_seconds: the silence after which a process is taken for lost.
        saves_on_signal: whether JAX receives SIGTERM, for `caption_jax.runtime.stopping`. Otherwise, SIGTERM ends the
            process.

    Raises:
        ConfigError: environment variables are missing or contradict each other, or `choice` is "on" and there is
            nothing to connect.
        ProcessesError: the other processes did not join in time.
    """
    cluster = None if choice == "off" else detect_cluster()
    if choice == "on" and cluster is None:
        raise ConfigError(
            "--distributed=on, but there is neither a TPU slice nor a SLURM job with several processes: "
            f"set {', '.join(_VARIABLES)} in each process, or use --distributed=off for a single process"
        )
    if cluster is not None and (cluster.num_processes > 1 or choice == "on"):
        jax.config.update("jax_enable_preemption_service", saves_on_signal)
        _join(cluster, timeout_seconds, heartbeat_seconds)
    elif cluster is not None:
        logging.info("%s; running as a single process", cluster.kind)
    else:
        logging.debug("running as a single process (--distributed=%s)", choice)
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ProcessesError(
            f"the devices belong to {jax.process_count()} processes, which --distributed={choice} does not connect: "
            "use --distributed=on, and start the same command on all hosts"
        )


def detect_cluster() -> Cluster | None:
    """Returns the processes that this process belongs to, or None if nothing indicates more than this process.

    Sources, in this order: the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; SLURM; the
    TPU variables of Kubernetes Engine; and the metadata server of a Cloud TPU VM.

    Raises:
        ConfigError: variables are missing or not valid.
    """
    managed = next((cluster for detect in _DETECTORS if (cluster := detect()) is not None), None)
    variables = {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    return _from_variables(variables, managed) if variables else managed


def _from_variables(variables: Mapping[str, str], managed: Cluster | None) -> Cluster:
    """Returns the cluster of the JAX variables; those that are not set are taken from the cluster manager.

    Args:
        variables: the JAX variables that are set.
        managed: the cluster that SLURM or a TPU VM describes; None if there is none.
    """
    address_name, count_name, index_name = _VARIABLES
    missing = [name for name in _VARIABLES if name not in variables]
    if missing and managed is None:
        verb = "is" if len(variables) == 1 else "are"
        raise ConfigError(
            f"{' and '.join(variables)} {verb} set, but not {' and '.join(missing)}: set all of them in each process, "
            "or none for a single process"
        )
    count = managed.num_processes if count_name in missing else _read_integer(variables, count_name)
    index = managed.process_id if index_name in missing else _read_integer(variables, index_name)
    if not 0 <= index < count:
        raise ConfigError(
            f"{index_name}={index} must be at least 0 and less than {count_name}={count}: number the processes from 0, "
            "and set the same count in all of them"
        )
    address = variables.get(address_name) or managed.coordinator
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"{address_name}={address} has no port: set it to HOST:PORT of process 0 in each process")
    kind = " and ".join([*variables, *([managed.kind] if missing else [])])
    return Cluster(kind, index, count, address)


def _read_integer(variables: Mapping[str, str], name: str) -> int:
    try:
        return int(variables[name])
    except ValueError:
        raise ConfigError(f"{name}={variables[name]} must be an integer") from None


def _detect_slurm() -> Cluster | None:
    """Detects the tasks of a job step; the batch script itself is a single process."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) <= 1:
        return None
    count, index = (_read_integer(os.environ, f"SLURM_{name}") for name in ("NTASKS", "PROCID"))
    # As in JAX: the first host of a list such as node[001-004],other, and a port that depends on the job.
    nodes, job = os.environ.get("SLURM_STEP_NODELIST", ""), _read_integer(os.environ, "SLURM_JOB_ID")
    host = "".join(re.match(r"([^,\[]*)(?:\[(\w+))?", nodes).groups(default=""))
    return Cluster(f"SLURM (job {job})", index, count, f"{host}:{_coordinator_port(job % 2**12 + 61440)}")


def _detect_kubernetes_tpu() -> Cluster | None:
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if not hosts or not uses_tpu():
        return None
    return _make_tpu_cluster(
        "TPU slice (TPU_WORKER_HOSTNAMES)", hosts.split(","), int(os.environ.get("TPU_WORKER_ID", "0")), os.environ
    )


def _detect_cloud_tpu() -> Cluster | None:
    """Detects the hosts of a Cloud TPU slice through the metadata server, as `jax.distributed.initialize` does."""
    if not uses_tpu() or "TPU_SKIP_MDS_QUERY" in os.environ:
        return None
    index, endpoints = (_read_metadata(name) for name in ("agent-worker-number", "worker-network-endpoints"))
    if index is None or endpoints is None:
        logging.warning(
            "the metadata server of this TPU VM (%s) does not list the hosts of the slice: running as a single "
            "process; if there are several hosts, set %s in each process",
            *(_metadata_host(), ", ".join(_VARIABLES)),
        )
        return None
    # Each endpoint is a host, or NAME:ID:HOST.
    hosts = [endpoint.rpartition(":")[2] for endpoint in endpoints.split(",")]
    slices = {**_parse_tpu_environment(_read_metadata("tpu-env") or ""), **os.environ}
    return _make_tpu_cluster(f"Cloud TPU (metadata server {_metadata_host()})", hosts, int(index), slices)


_DETECTORS: tuple[Callable[[], Cluster | None], ...] = (
    _detect_slurm,
    _detect_kubernetes_tpu,
    _detect_cloud_tpu,
)


def uses_tpu() -> bool:
    """Returns whether JAX uses the TPU of this machine, without initialising it."""
    return "tpu" in (jax.config.jax_platforms or "").split(",")  # set by JAX on a TPU VM, unless JAX_PLATFORMS is set


def _make_tpu_cluster(kind: str, hosts: list[str], index: int, variables: Mapping[str, str]) -> Cluster:
    """Returns the cluster of one slice, or of several slices connected by MEGASCALE variables."""
    slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
    slice_index = int(variables.get("MEGASCALE_SLICE_ID") or 0)
    coordinator = (variables.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).partition(":")[0]
    address = f"{coordinator}:{_coordinator_port(8482)}"
    return Cluster(kind, index + slice_index * len(hosts), len(hosts) * slices, address)


def _coordinator_port(default: int) -> int:
    return int(os.environ.get("JAX_COORDINATOR_PORT") or default)


def _metadata_host() -> str:
    return os.environ.get("GCE_METADATA_IP", "metadata.google.internal")


def _read_metadata(attribute: str) -> str | None:
    """Returns an attribute of this VM; None if it does not exist or there is no metadata server."""
    url = f"http://{_metadata_host()}/computeMetadata/v1/instance/attributes/{attribute}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine
    for attempt in range(_METADATA_ATTEMPTS):
        try:
            with opener.open(request, timeout=_METADATA_SECONDS) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
        except OSError:  # includes timeouts and unknown hosts
            pass
        if attempt < _METADATA_ATTEMPTS - 1:
            time.sleep(0.5)
    return None


def _parse_tpu_environment(text: str) -> dict[str, str]:
    """Parses lines such as `MEGASCALE_NUM_SLICES: '2'`."""
    lines = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip().strip("'") for name, colon, value in lines if colon}


def _join(cluster: Cluster, timeout_seconds: int, heartbeat_seconds: float) -> None:
    peers = cluster.num_processes - 1
    waiting = f"; waiting for {peers} peer{'s' * (peers != 1)}, at most {timeout_seconds} s" if peers else ""
    logging.info("%s%s", cluster, waiting)
    meeting = meet(cluster.coordinator, cluster.process_id, cluster.num_processes, timeout_seconds)
    if peers:
        start_watching(meeting, heartbeat_seconds)
    is_main = cluster.process_id == 0
    jax.distributed.initialize(
        cluster.coordinator if is_main else start_relay(cluster.coordinator, timeout_seconds),
        cluster.num_processes,
        cluster.process_id,
        initialization_timeout=timeout_seconds,
        heartbeat_timeout_seconds=max(_MIN_JAX_HEARTBEAT_SECONDS, int(3 * heartbeat_seconds)),
    )
    logging.debug("connected to %d processes", cluster.num_processes)


def leave_processes() -> None:
    """Waits until all processes of the run call this function, at its end. Does nothing in a single process."""
    watch = current_watch()
    if watch is not None:
        wait_for_all("end of the run")
        watch.leave()
