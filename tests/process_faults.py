"""Starts the processes of a run, and kills them at chosen moments."""

from __future__ import annotations

import dataclasses
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from process_group import reserve_address
from resume_run import RunLauncher, has_trained, is_writing, list_saved_steps

from caption_jax.runtime.liveness import PEER_LOST

HOST = socket.gethostname()
END_SECONDS = 20  # the bound of docs/reliability.md
DUMPS = ("Traceback", "stack trace", "terminate called", "Fatal Python error")
EVENTS = ("start", "compilation", "step", "evaluation", "last", "best")  # "last", "best": checkpoints being written


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run, each with its own log."""

    processes: list[subprocess.Popen]
    logs: list[Path]

    def lose(self, index: int, condition: Callable[[], bool], delay: float, number: int = signal.SIGKILL) -> bool:
        """Sends a signal to a process `delay` seconds after a condition is met; returns False if the run ends first."""
        while not condition():
            if self.processes[index].poll() is not None:
                return False
            time.sleep(0.005)
        time.sleep(delay)
        self.processes[index].send_signal(number)
        return self.processes[index].wait() == -number if number == signal.SIGKILL else True

    def wait(self, seconds: float = 600) -> list[int]:
        """Waits for all processes; returns their statuses."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]

    def check_survivors(self, lost: int, line: str) -> None:
        """Asserts that all processes but one end in time, with one line and no dump."""
        for index, (process, log) in enumerate(zip(self.processes, self.logs, strict=True)):
            if index != lost:
                assert process.wait(END_SECONDS) == PEER_LOST, log.read_text()
                errors = [text for text in log.read_text().splitlines() if text.startswith("error: ")]
                assert len(errors) == 1, log.read_text()
                assert errors[0].startswith(f"error: process {lost} ({HOST}) {line}")
                assert not any(dump in log.read_text() for dump in DUMPS), log.read_text()


class RunStarter:
    """Starts runs of several processes.

    Args:
        launcher: starts the processes.
        folder: folder for their logs.
    """

    def __init__(self, launcher: RunLauncher, folder: Path):
        self._launcher, self._folder = launcher, folder
        self.started: list[subprocess.Popen] = []

    def __call__(
        self, workdir: Path, count: int, *flags: str, script: str = "main.py", **environment: str
    ) -> Processes:
        environment |= {"JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": str(count)}
        launcher = dataclasses.replace(self._launcher, script=script)
        logs = [self._folder / f"{workdir.name}_{len(self.started)}_{index}.log" for index in range(count)]
        processes = [
            launcher.start(workdir, *flags, log=log, JAX_PROCESS_ID=str(index), **environment)
            for index, log in enumerate(logs)
        ]
        self.started.extend(processes)
        return Processes(processes, logs)

    def kill_all(self) -> None:
        """Kills the processes that still run."""
        for process in self.started:
            process.kill()


def make_condition(event: str, step: int, workdir: Path, log: Path) -> Callable[[], bool]:
    """Returns whether a process has met the others, and its run has reached an event at a step, as a function.

    A process that is lost before all have met is missed after another time, `distributed.TIMEOUT_SECONDS`. An earlier
    process may have reached the event already, after the checkpoint from which this one resumes.
    """

    def have_met(text: str = "captions: ") -> bool:
        return log.exists() and text in log.read_text()

    if event == "start":
        return have_met
    if event == "compilation":
        return lambda: have_met("model: ")
    if event in ("step", "evaluation"):
        return lambda: have_met() and has_trained(step)(workdir)
    return lambda: have_met() and is_writing(step, event)(workdir)


def kill_repeatedly(
    start: RunStarter,
    workdir: Path,
    flags: Sequence[str],
    steps: int,
    kills: Sequence[tuple[int, str]],
    rng: random.Random,
    count: int,
) -> None:
    """Kills a run of `count` processes once per (process, event), resumes it each time, and lets it end at last."""
    for lost, event in kills:
        processes = start(workdir, count, *flags)
        saved = (list_saved_steps(workdir) or [0])[-1]
        step = rng.randint(min(saved + 1, steps), steps)
        if event == "evaluation":
            step = min(-(-step // 6) * 6, steps)  # --config.train.eval_every=6
        condition = make_condition(event, step, workdir, processes.logs[lost])
        delay = rng.uniform(0, {"start": 5.0, "compilation": 5.0, "evaluation": 1.0}.get(event, 0.02))
        if processes.lose(lost, condition, delay):
            processes.check_survivors(lost, "was killed or has crashed: see its log; ")
        else:
            assert processes.wait() == [0] * count
    processes = start(workdir, count, *flags)
    assert processes.wait() == [0] * count, processes.logs[0].read_text()
