"""Runs whose processes are killed or terminated at random moments, and then compared with an undisturbed run.

A run consists of training, the evaluation of the test split and, if its model has an image embedding, an index. Each of
these commands is disturbed several times, and repeated until it ends by itself.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import resume_run
import small_run
from resume_run import RunLauncher, has_trained, is_writing, list_saved_steps, log_path, read_evaluation, read_rows

from caption_jax.cli.exit_status import STOPPED

Condition = Callable[[Path], bool]

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
COPIES = 8  # of the twelve images of `small_run`
DATA_MODES = {"evaluate": ("--mode=evaluate", "--split=test"), "index": ("--mode=index", "--split=train")}
DISTURBANCES = {"train": (4, 12), "evaluate": (0, 1), "index": (0, 2)}  # per run
SIGNAL_SECONDS = 120  # a process that is still alive so long after SIGTERM hangs


@dataclasses.dataclass(frozen=True)
class Subject:
    """A config whose runs are disturbed.

    Attributes:
        config: config file, with the variant after a colon.
        steps: number of training steps.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        flags: additional flags.
        commands: the commands of a run.
        caches: folders of the caches that training writes in the workdir.
        environment: environment variables of all processes.
    """

    config: str
    steps: int
    eval_every: int
    checkpoint_every: int
    flags: tuple[str, ...] = ()
    commands: tuple[str, ...] = ("train", "evaluate")
    caches: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def get_flags(self, command: str) -> tuple[str, ...]:
        """Returns the flags of one of the commands."""
        if command != "train":
            return DATA_MODES[command]
        every = {"steps": self.steps, "eval_every": self.eval_every, "checkpoint_every": self.checkpoint_every}
        return (*self.flags, *(f"--config.train.{name}={value}" for name, value in every.items()))


SUBJECTS = {
    "shapes": Subject(
        str(resume_run.ROOT / "configs/shapes.py"),
        steps=48,
        eval_every=16,
        checkpoint_every=8,
        flags=(
            "--config.data.shapes=tiny",
            "--config.data.batch_size=16",
            "--config.data.pixel_cache.use=always",
            "--config.train.log_every=1",
        ),
        caches=("pixels",),
        environment={"XLA_FLAGS": ""},  # all optimizations: this model is compiled once, and executed often
    ),
    "frozen": Subject(
        f"{resume_run.__file__}:frozen",
        steps=60,
        eval_every=15,
        checkpoint_every=10,
        commands=("train", "evaluate", "index"),
        caches=("features",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment at which a process is disturbed: `delay` seconds after its workdir meets a condition."""

    event: str
    condition: Condition
    delay: float


def write_data(folder: Path) -> Path:
    """Writes several copies of the dataset of `small_run`, whose images differ in one pixel."""
    small_run.write_images(folder)
    with (folder / "captions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    with (folder / "captions.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        for copy in range(1, COPIES):
            for name in sorted({row[0] for row in rows}):
                image = small_run.Image.open(folder / "images" / name)
                image.putpixel((0, 0), (copy, copy, copy))
                image.save(folder / "images" / f"{copy}_{name}")
            writer.writerows([f"{copy}_{row[0]}", *row[1:]] for row in rows)
    assert header == ["image", "caption", "split"]
    return folder


def always(workdir: Path) -> bool:
    """Is true as soon as the process has started."""
    return True


def count_trained_steps(workdir: Path) -> int:
    """Returns the last step that an earlier process has logged, which may be later than its last checkpoint."""
    return max([0, *(step for step, split, _ in read_rows(workdir) if split == "train")])


def sample_moment(rng: random.Random, subject: Subject, command: str, workdir: Path) -> Moment:
    """Samples a moment that a command has not passed yet."""
    if command != "train":
        return Moment(command, always, rng.uniform(0, 12))
    saved, trained = (list_saved_steps(workdir) or [0])[-1], count_trained_steps(workdir)
    step = rng.randint(min(max(saved, trained) + 1, subject.steps), subject.steps)
    next_evaluation = -(-step // subject.eval_every) * subject.eval_every
    events = ["start", "step", "checkpoint", "best weights", "evaluation", "end", *["cache"] * (2 if not saved else 0)]
    event = rng.choice(events)
    condition, longest = {
        "start": (always, 15.0),  # imports, restoring a checkpoint, compiling
        "cache": (lambda folder: any((folder / cache).is_dir() for cache in subject.caches), 1.0),
        "step": (has_trained(step), 0.05),
        "checkpoint": (is_writing(step, "last"), 0.02),
        "best weights": (is_writing(step, "best"), 0.02),
        "evaluation": (has_trained(min(next_evaluation, subject.steps)), 2.0),
        "end": (lambda folder: list_saved_steps(folder)[-1:] == [subject.steps], 2.0),
    }[event]
    is_exact = longest < 0.1 and rng.random() < 0.5
    return Moment(event, condition, 0.0 if is_exact else rng.uniform(0, longest))


@dataclasses.dataclass
class Disturber:
    """Disturbs runs until a number of processes have received a signal.

    Attributes:
        launcher: starts the processes.
        subject: the config.
        seed: random seed of all moments.
        remaining: number of processes to disturb.
        counts: number of processes by signal and event.
        repeated: the steps that were repeated after each disturbance.
    """

    launcher: RunLauncher
    subject: Subject
    seed: int
    remaining: int
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    repeated: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.launcher = dataclasses.replace(self.launcher, config=self.subject.config)
        self._rng = random.Random(self.seed)

    def complete(self, workdir: Path, **environment: str) -> None:
        """Executes all commands of a run, of which those that are left are disturbed."""
        for command in self.subject.commands:
            least, most = DISTURBANCES[command]
            allowed = min(self._rng.randint(least, most), self.remaining)
            while allowed and self._disturb(workdir, command, **environment):
                allowed -= 1
            process = self._start(workdir, command, **environment)
            assert process.wait() == 0, log_path(workdir).read_text()[-5000:]
        assert not (workdir / "training.lock").exists()

    def _start(self, workdir: Path, command: str, **environment: str) -> subprocess.Popen:
        environment = {**self.subject.environment, **environment}
        return self.launcher.start(workdir, *self.subject.get_flags(command), **environment)

    def _disturb(self, workdir: Path, command: str, **environment: str) -> bool:
        """Starts a process and sends it a signal. Returns False if it ended before."""
        moment = sample_moment(self._rng, self.subject, command, workdir)
        number = self._rng.choice(SIGNALS)
        length = log_path(workdir).stat().st_size if log_path(workdir).exists() else 0
        trained = count_trained_steps(workdir)
        start = time.monotonic()
        process = self._start(workdir, command, **environment)
        try:
            while not moment.condition(workdir) and process.poll() is None:
                time.sleep(0.002)
            time.sleep(moment.delay)
            process.send_signal(number)
            status = process.wait(SIGNAL_SECONDS)
        finally:
            process.kill()
        log = log_path(workdir).read_bytes()[length:].decode()
        expected = {0, -signal.SIGKILL} if number == signal.SIGKILL else self._get_statuses(command, log)
        assert status in expected, f"{moment.event}, {number.name}, {time.monotonic() - start:.1f} s: {status}\n{log}"
        assert "Traceback" not in log, log
        if command == "train":
            self._note_repeated(trained, log)
        if status == 0:
            return False
        self.remaining -= 1
        self.counts[number.name, moment.event] += 1
        return True

    def _get_statuses(self, command: str, log: str) -> set[int]:
        """Returns the possible statuses of a process that has received SIGTERM."""
        if not log:  # Python had not yet imported main.py, or the imports were not complete
            return {-signal.SIGTERM, STOPPED, 128 + signal.SIGTERM}
        return {0, STOPPED if command == "train" else 128 + signal.SIGTERM}

    def _note_repeated(self, trained: int, log: str) -> None:
        """Notes how many of the steps that a former process has logged are repeated by the next one."""
        if match := re.search(r"resuming from step (\d+) of", log):
            self.repeated.append(max(trained - int(match[1]), 0))


def assert_same_run(actual: Path, expected: Path, subject: Subject) -> None:
    """Asserts that two workdirs have equal checkpoints, metrics, scores, captions and indexes."""
    resume_run.assert_same_result(actual, expected)
    assert read_evaluation(actual, "test") == read_evaluation(expected, "test")
    if "index" in subject.commands:
        files = [{path.name: path.read_bytes() for path in (w / "index").iterdir()} for w in (actual, expected)]
        assert files[0].keys() == files[1].keys() and "index.json" in files[0]
        assert [name for name in files[0] if files[0][name] != files[1][name]] == []


def kill_at_random(launcher: RunLauncher, name: str, folder: Path, *, seed: int, kills: int, new_programs: int) -> str:
    """Disturbs runs of a subject, and compares each with an undisturbed one.

    Args:
        launcher: starts the processes.
        name: name of the subject.
        folder: empty folder for workdirs.
        seed: random seed of all moments.
        kills: number of processes to disturb.
        new_programs: every how many runs the compilation cache is empty at the start; 0 for never.

    Returns:
        A summary with counts.
    """
    subject, data = SUBJECTS[name], write_data(folder / "data")
    disturber = Disturber(dataclasses.replace(launcher, data=data), subject, seed, remaining=0)
    undisturbed = folder / "undisturbed"
    disturber.complete(undisturbed)
    disturber.remaining, runs = kills, 0
    while disturber.remaining:
        runs += 1
        workdir, programs = folder / f"run_{runs}", folder / f"programs_{runs}"
        has_new_programs = new_programs and runs % new_programs == 0
        disturber.complete(workdir, **({"JAX_COMPILATION_CACHE_DIR": str(programs)} if has_new_programs else {}))
        assert_same_run(workdir, undisturbed, subject)
        for path in (workdir, programs):
            shutil.rmtree(path, ignore_errors=True)
        print(f"{name}: run {runs} is bit-identical; {kills - disturber.remaining} of {kills} processes", flush=True)
    worst = max(disturber.repeated, default=0)
    # While a checkpoint is written, training goes on until the next one.
    assert worst <= 2 * subject.checkpoint_every, disturber.repeated
    counts = ", ".join(f"{number} {event}: {count}" for (number, event), count in sorted(disturber.counts.items()))
    return f"{name}: {kills} processes of {runs} runs; {counts}; at most {worst} steps repeated"
