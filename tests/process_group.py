"""Starts several processes of one run on this machine."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from quick_compilation import QUICK_COMPILATION_FLAGS
from resume_run import RunLauncher, log_path

PAIR_FLAGS = (
    "--config.mesh.data=2",
    "--config.data.batch_size=8",
    "--config.model.encoder.norm_group_size=2",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=5",
)
# Differences between parameters are proportional to differences between gradients.
SGD = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.1")
# For 50 steps, during which a higher rate would amplify rounding errors to 1e-4 in the loss.
SLOW_SGD = ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.02")
# One image per device and microbatch.
ONE_IMAGE = ("--config.model.encoder.norm_group_size=1", "--config.data.eval_batch_size=4")


def reserve_address() -> str:
    """Returns HOST:PORT of an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def simulate_devices(count: int) -> dict[str, str]:
    """Returns the environment of a process with several CPU devices."""
    return {"XLA_FLAGS": f"{QUICK_COMPILATION_FLAGS} --xla_force_host_platform_device_count={count}"}


def start_processes(
    launcher: RunLauncher, workdirs: Sequence[Path], flags: Sequence[Sequence[str]] = (), **environment: str
) -> list[subprocess.Popen]:
    """Starts one process of a run per workdir.

    Args:
        launcher: starts the processes.
        workdirs: the workdir of each process, which is the same for all unless a test is about this.
        flags: additional flags of each process; none by default.
        environment: additional environment variables.
    """
    environment |= {"JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": str(len(workdirs))}
    flags = flags or [()] * len(workdirs)
    return [
        launcher.start(workdir, *PAIR_FLAGS, *flags[index], **environment, JAX_PROCESS_ID=str(index))
        for index, workdir in enumerate(workdirs)
    ]


def wait_for_all(processes: Sequence[subprocess.Popen], timeout_seconds: float) -> list[int]:
    """Waits for processes, and returns their exit statuses. Those that still run in the end are killed."""
    try:
        return [process.wait(timeout=timeout_seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def read_errors(workdir: Path) -> list[str]:
    """Returns the lines of the log of a workdir that report errors."""
    return [line for line in log_path(workdir).read_text().splitlines() if line.startswith("error: ")]
