"""Images per second of two workers of `caption-many`, compared with two plain processes that run the same loop.

    python -m benchmarks.bulk [--shards=40] [--images=50] [--rounds=3] [--workdir=demo]

Both sides caption the same tar files of JPEGs of 640 x 480 pixels and write the same Parquet files, with the same
number of threads per process. The plain processes divide the files in advance. The rate is computed from the times at
which the files were written, without the first quarter, in which the processes start and compile their programs. The
sides alternate, and the medians over the rounds are compared.

Requires the `ray` extra. The last line is JSON; `ratio` is above 1 if the workers are faster.
"""

from __future__ import annotations

import argparse
import collections
import io
import itertools
import multiprocessing
import os
import pickle
import statistics
import tarfile
import tempfile
from pathlib import Path

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


def run_workers(job: Job, units: list[Unit], cpus: int, conditions: Conditions) -> None:
    """Captions the files with Ray's workers."""
    with running_ray(WORKERS):
        results = caption_units(dict(enumerate(units)), job, WORKERS)
        with conditions.measured():  # ends while the workers run, because the time of those that have ended is unknown
            collections.deque(itertools.islice(results, len(units)), maxlen=0)
        results.close()


def run_processes(job: Job, units: list[Unit], cpus: int, conditions: Conditions) -> None:
    """Captions the files with processes that divide them in advance."""
    context, rows = multiprocessing.get_context("spawn"), list(enumerate(units))
    processes = [context.Process(target=_run_process, args=(job, rows[n::WORKERS], cpus)) for n in range(WORKERS)]
    with conditions.measured():
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(f"a process exited with status {failed[0]}")


def _run_process(job: Job, rows: list[tuple[int, Unit]], cpus: int) -> None:
    worker = UnitWorker(job, cpus)
    for number, unit in rows:
        failure = worker({"number": number, "unit": pickle.dumps(unit)})["failure"]
        if failure:
            raise RuntimeError(failure)


def compute_rate(folder: Path, images: int) -> float:
    """Returns the images per second between the modification times of the Parquet files, without the first quarter."""
    times = sorted(path.stat().st_mtime_ns for path in folder.glob("*.parquet"))
    first = len(times) // 4
    return (len(times) - 1 - first) * images / (1e-9 * (times[-1] - times[first]))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--images", type=int, default=50, help="images per shard")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", default="demo")
    options = parser.parse_args()
    use_cpu()
    conditions = Conditions()
    workdir = os.path.abspath(locate_model(options.workdir))
    spec = read_model(workdir).description.spec
    cpus = max(len(os.sched_getaffinity(0)) // WORKERS, 1)
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "shards").mkdir()
        units = write_shards(Path(name) / "shards", options.shards, options.images)
        for number in range(options.rounds):
            for side, run in (("ours", run_workers), ("peer", run_processes)):
                folder = Path(name) / f"{side}{number}"
                folder.mkdir()
                run(Job(workdir, "best", spec.decode, spec.limits, str(folder)), units, cpus, conditions)
                rates[side].append(compute_rate(folder, options.images))
                print(f"round {number + 1}, {side}: {rates[side][-1]:.2f} images/s", flush=True)
    ours, peer = (statistics.median(rates[side]) for side in ("ours", "peer"))
    cells = {"two workers": {"ours": ours, "peer": peer, "ratio": ours / peer}}
    print_result("bulk", cells, "images/s", conditions)


if __name__ == "__main__":
    main()
