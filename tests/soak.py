"""Training and captioning for a fixed time, with checks that memory use does not grow (Linux)."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import small_run
from resident_memory import read_resident_mb
from resume_run import RunLauncher, list_saved_steps, log_path, read_rows

import caption_jax
from caption_jax.cli.exit_status import STOPPED

MAX_GROWTH_MB = 64  # allocators do not return all memory


def assert_steady(samples_mb: list[float]) -> None:
    """Asserts that the median of the last third of the samples is not much larger than that of the first third."""
    assert len(samples_mb) >= 9, samples_mb
    medians = [np.median(third) for third in np.array_split(samples_mb, 3)]
    assert medians[-1] - medians[0] < MAX_GROWTH_MB, f"medians of thirds in MB: {medians}"


def repeat_for(seconds: float, samples: int = 300) -> Iterator[None]:
    """Yields about `samples` times within `seconds`, at intervals of 0.25 to 60 seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(max(min(seconds / samples, 60.0), 0.25))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen, workdir: Path) -> None:
    while not condition():
        assert process.poll() is None, log_path(workdir).read_text()
        time.sleep(0.25)


def train_for(seconds: float, images: Path, cache: Path, folder: Path) -> None:
    """Trains in a separate process, with an evaluation every 100 steps and a checkpoint every 50 steps."""
    workdir = folder / "run"
    flags = ("steps=100000000", "log_every=50", "eval_every=100", "checkpoint_every=50", "sample_images=1")
    process = RunLauncher(images, cache).start(workdir, *(f"--config.train.{flag}" for flag in flags))
    try:
        # After three evaluations, every program has been compiled and warmed up.
        wait_until(lambda: sum(split == "val" for _, split, _ in read_rows(workdir)) >= 3, process, workdir)
        first_step, samples = read_rows(workdir)[-1][0], []
        for _ in repeat_for(seconds):
            assert process.poll() is None, log_path(workdir).read_text()
            samples.append(read_resident_mb(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == STOPPED, log_path(workdir).read_text()
    finally:
        process.kill()
    assert list_saved_steps(workdir)[-1] > first_step + 100  # at least one evaluation while memory was measured
    assert_steady(samples)


def caption_for(seconds: float, workdir: Path) -> None:
    """Captions images repeatedly in the current process, in batches of one to nine."""
    captioner, rng = caption_jax.load(str(workdir)), np.random.default_rng(0)
    colours, samples = list(small_run.COLOURS), []

    def caption_batch(size: int) -> None:
        images = [small_run.box_image(colours[rng.integers(len(colours))], "left") for _ in range(size)]
        assert len(captioner.caption(images)) == size

    for size in range(1, 10):  # compiles the program for each batch size
        caption_batch(size)
    for _ in repeat_for(seconds):
        for _ in range(20):
            caption_batch(int(rng.integers(1, 10)))
        samples.append(read_resident_mb())
    assert_steady(samples)
