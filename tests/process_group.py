"""Starts several processes of one run on this machine."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from resume_run import RunLauncher, log_path

PAIR_FLAGS = (
    "--config.mesh.data=2",
    "--config.data.batch_size=8",
    "--config.model.encoder.norm_group_size=2",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=5",
)


def reserve_address() -> str:
    """Returns HOST:PORT of an unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def start_processes(
    launcher: RunLauncher, workdirs: Sequence[Path], flags: Sequence[Sequence[str]] = ()
) -> list[subprocess.Popen]:
    """Starts one process of a run per workdir.

    Args:
        launcher: starts the processes.
        workdirs: the workdir of each process, which is the same for all unless a test is about this.
        flags: additional flags of each process; none by default.
    """
    environment = {"JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": str(len(workdirs))}
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
