"""Training and captioning for a given time with measurements of memory (Linux)."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import small_run
from resident_memory import resident_mb
from resume_run import Runs, log_path, rows, saved_steps

import caption_jax

ALLOWED_MB = 64  # growth from start to end; allocators do not return all memory


def assert_steady(samples: list[float]) -> None:
    """Asserts that the last third of the samples needs no more memory than the first."""
    assert len(samples) >= 9, samples
    thirds = [np.median(part) for part in np.array_split(samples, 3)]
    assert thirds[-1] - thirds[0] < ALLOWED_MB, f"MB, medians of thirds: {thirds}"


def ticks(seconds: float, samples: int = 300) -> Iterator[None]:
    """Yields at regular intervals, at least every second of a short run."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(max(min(seconds / samples, 60.0), 0.25))


def wait_until(condition: Callable[[], bool], process, workdir: Path) -> None:
    while not condition():
        assert process.poll() is None, log_path(workdir).read_text()
        time.sleep(0.25)


def train_for(seconds: float, images: Path, cache: Path, folder: Path) -> None:
    """Trains in a separate process, with an evaluation every 100 steps and a checkpoint every 50, then stops it."""
    workdir = folder / "run"
    flags = ("steps=100000000", "log_every=50", "eval_every=100", "checkpoint_every=50", "sample_images=1")
    process = Runs(images, cache).start(workdir, *(f"--config.train.{flag}" for flag in flags))
    try:
        wait_until(lambda: sum(split == "val" for _, split, _ in rows(workdir)) >= 3, process, workdir)  # warmed up
        warm, samples = rows(workdir)[-1][0], []
        for _ in ticks(seconds):
            assert process.poll() is None, log_path(workdir).read_text()
            samples.append(resident_mb(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0, log_path(workdir).read_text()
    finally:
        process.kill()
    assert saved_steps(workdir)[-1] > warm + 100  # it has trained and evaluated in the meantime
    assert_steady(samples)


def caption_for(seconds: float, workdir: Path) -> None:
    """Captions images repeatedly in this process, in batches of up to nine."""
    captioner, rng = caption_jax.load(str(workdir)), np.random.default_rng(0)
    names, samples = list(small_run.COLOURS), []

    def caption(count: int) -> None:
        images_of_batch = [small_run.box_image(names[rng.integers(len(names))], "left") for _ in range(count)]
        assert len(captioner.caption(images_of_batch)) == count

    with small_run.quick_compilation():
        for count in range(1, 10):  # each size compiles once
            caption(count)
        for _ in ticks(seconds):
            for _ in range(20):
                caption(int(rng.integers(1, 10)))
            samples.append(resident_mb())
    assert_steady(samples)
