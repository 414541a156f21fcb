"""The estimate of an epoch agrees with runs of 1, 2 and 4 processes: one half of each run predicts the other half.

The halves alternate, so that other programs on the machine slow down both.

python -m pytest -n 0 -s -m long tests/long/test_epoch_estimate.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from process_group import start_processes, wait_for_all
from resume_run import RunLauncher, log_path

from caption_jax.planning.epoch import EpochRequest, TrainingStep, estimate_epoch
from caption_jax.specs import RunSpec

pytestmark = pytest.mark.long

IMAGES, EVERY = 8, 20  # images per step, steps between checkpoints
# Steps, after the encoder is unfrozen. A checkpoint is written in the middle of each interval of EVERY steps.
FIRST, LAST = 30, 190
TOLERANCE = 0.25


@dataclasses.dataclass(frozen=True)
class Measured:
    """Figures of a part of a run.

    Attributes:
        steps: number of steps.
        seconds: time of the part, with checkpoints.
        step_seconds: mean time of a step, without checkpoints.
    """

    steps: int
    seconds: float
    step_seconds: float

    @property
    def write_seconds(self) -> float:
        """Time in which a checkpoint is written, if training waited for the previous one; otherwise an upper bound."""
        stall = (self.seconds - self.steps * self.step_seconds) / (self.steps // EVERY)
        return max(stall, 0.0) + EVERY * self.step_seconds


def measure(workdir: Path, parity: int) -> Measured:
    """Measures the intervals of EVERY steps with even (0) or odd (1) numbers."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["values"] for row in rows if row["split"] == "train"}
    starts = range(FIRST + parity * EVERY, LAST - EVERY + 1, 2 * EVERY)
    steps = [step for start in starts for step in range(start + 1, start + EVERY + 1)]
    seconds = sum(values[start + EVERY]["wall_seconds"] - values[start]["wall_seconds"] for start in starts)
    step_seconds = sum(IMAGES / values[step]["images_per_second"] for step in steps) / len(steps)
    return Measured(len(steps), seconds, step_seconds)


def read_checkpoint_bytes(workdir: Path) -> int:
    folder = max((workdir / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_epoch_takes_as_long_as_estimated(small_images, compile_cache, tmp_path, count):
    workdir, launcher = tmp_path / "run", RunLauncher(small_images, compile_cache)
    flags = (
        f"--config.mesh.data={count}",
        f"--config.data.eval_batch_size={count}",
        "--config.model.encoder.norm_group_size=1",
        "--config.optimizer.grad_accum_steps=1",
        f"--config.train.steps={LAST + 1}",
        f"--config.train.checkpoint_every={EVERY}",
        f"--config.train.eval_every={LAST + 1}",
    )
    processes = start_processes(launcher, [workdir] * count, [flags] * count)
    assert wait_for_all(processes, timeout_seconds=3600) == [0] * count, log_path(workdir).read_text()

    half, rest = measure(workdir, 0), measure(workdir, 1)
    checkpoint_bytes = read_checkpoint_bytes(workdir)
    request = EpochRequest(
        pairs=rest.steps * IMAGES,
        step_seconds=half.step_seconds,
        checkpoint_bandwidth=checkpoint_bytes / half.write_seconds,
    )
    spec = RunSpec()
    spec = dataclasses.replace(
        spec,
        data=dataclasses.replace(spec.data, captions_per_image=1),
        train=dataclasses.replace(spec.train, checkpoint_every=EVERY),
    )
    epoch = estimate_epoch(TrainingStep(count, IMAGES, IMAGES // count, 0.0), spec, checkpoint_bytes, request)
    estimated = epoch["hours"] * 3600
    print(
        f"{count} processes: {rest.steps} steps and {epoch['checkpoints']} checkpoints in {rest.seconds:.2f} s, "
        f"estimated {estimated:.2f} s ({estimated / rest.seconds:.2f}) from steps of {half.step_seconds * 1e3:.1f} ms"
    )
    assert epoch["steps"] == rest.steps and epoch["checkpoints"] == rest.steps // EVERY
    assert estimated == pytest.approx(rest.seconds, rel=TOLERANCE)
