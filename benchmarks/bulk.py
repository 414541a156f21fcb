"""Images per second of two workers of `caption-many`, compared with two plain processes that run the same loop.

    python -m benchmarks.bulk [--shards=40] [--images=50] [--workdir=demo]

Both sides caption the same tar files of JPEGs of 640 x 480 pixels and write the same Parquet files, with the same
number of threads per process. The plain processes divide the files in advance. Each process first captions a file that
is not timed, which loads or compiles its program.

Requires the `ray` extra. The last line is JSON; `ratio` is above 1 if the workers are faster.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import pickle
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.alternate import print_result, use_cpu
from benchmarks.conditions import Conditions
from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.ray_pool import UnitWorker, caption_units, running_ray
from caption_jax.bulk.work_units import Unit, find_units
from caption_jax.named_models import locate_model
from caption_jax.runs.loading import read_model

WORKERS = 2


def write_shards(folder: Path, shards: int, images: int) -> list[Unit]:
    """Writes tar files of different JPEGs, and returns them as units."""
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for number in range(images):
                small = rng.integers(0, 256, (24, 32, 3), np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                member = tarfile.TarInfo(f"{number:04d}.jpg")
                member.size = buffer.tell()
                buffer.seek(0)
                archive.addfile(member, buffer)
    return find_units([str(folder)], 1000)


def measure_workers(job: Job, units: list[Unit], images: int) -> float:
    """Returns the images per second of Ray's workers, after each has captioned a file."""
    with running_ray(WORKERS):
        for done, _ in enumerate(caption_units(dict(enumerate(units)), job, WORKERS), 1):
            if done == WORKERS:
                start = time.perf_counter()
    return (len(units) - WORKERS) * images / (time.perf_counter() - start)


def measure_processes(job: Job, units: list[Unit], images: int, cpus: int) -> float:
    """Returns the images per second of processes that divide the files, after each has captioned a file."""
    context = multiprocessing.get_context("spawn")
    barrier, rows = context.Barrier(WORKERS + 1), list(enumerate(units))
    arguments = [(job, rows[index::WORKERS], cpus, barrier) for index in range(WORKERS)]
    processes = [context.Process(target=_run_process, args=args) for args in arguments]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process exited with status {process.exitcode}")
    return (len(units) - WORKERS) * images / (time.perf_counter() - start)


def _run_process(job: Job, rows: list[tuple[int, Unit]], cpus: int, barrier: Any) -> None:
    worker = UnitWorker(job, cpus)
    for position, (number, unit) in enumerate(rows):
        if position == 1:
            barrier.wait()
        failure = worker({"number": number, "unit": pickle.dumps(unit)})["failure"]
        if failure:
            raise RuntimeError(failure)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--images", type=int, default=50, help="images per shard")
    parser.add_argument("--workdir", default="demo")
    options = parser.parse_args()
    use_cpu()
    conditions = Conditions()
    workdir = os.path.abspath(locate_model(options.workdir))
    spec = read_model(workdir).description.spec
    cpus = max(len(os.sched_getaffinity(0)) // WORKERS, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("shards", "ours", "peer"):
            (folder / part).mkdir()
        units = write_shards(folder / "shards", options.shards, options.images)
        ours, peer = (Job(workdir, "best", spec.decode, spec.limits, str(folder / part)) for part in ("ours", "peer"))
        with conditions.measured():
            rates = {
                "peer": measure_processes(peer, units, options.images, cpus),
                "ours": measure_workers(ours, units, options.images),
            }
    print(", ".join(f"{side} {rate:.2f} images/s" for side, rate in rates.items()))
    print_result("bulk", {"two workers": {**rates, "ratio": rates["ours"] / rates["peer"]}}, "images/s", conditions)


if __name__ == "__main__":
    main()
