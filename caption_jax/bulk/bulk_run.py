"""A bulk run: captions collections of images with Ray, and continues after an interruption."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.machines import LostMachineError, WorkerError
from caption_jax.bulk.output_folder import Manifest, locked_folder, write_summary
from caption_jax.bulk.parts import Counts, count_rows, list_parts
from caption_jax.bulk.ray_pool import UnitResult, caption_units, is_cluster, running_ray
from caption_jax.bulk.work_units import Unit
from caption_jax.retrieval.index_format import ModelIdentity
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import fingerprint
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.extras import require
from input_pipeline.files import is_on_bucket
from input_pipeline.terminal_text import escape, escape_message

_LISTED_ERRORS = 10
_LOSSES_WITHOUT_RESULT = 2  # of machines, one after another, after which the run goes on


def run_job(
    job: Job, units: Sequence[Unit], workers: int, display: Display = SILENT, *, verbose: bool = False
) -> Counts:
    """Captions units, except for those that an earlier start has finished, and prints a summary.

    Errors of the first images are printed on stderr. No device is used in this process.

    Args:
        job: what to compute.
        units: all units; see `find_units`.
        workers: number of actors; see `choose_resources`.
        display: shows the progress.
        verbose: whether to show the messages of Ray.

    Returns:
        The numbers of all images of the folder.

    Raises:
        ConfigError: the folder holds the output of another run, or there is no room for the workers.
        LockedError: another process is writing to the folder.
        MissingPackageError: the `ray` extra is not installed.
        WorkerError: the workers cannot go on; the same command continues.
    """
    require("bulk captioning", "ray", "pandas")
    with display.phase("reading the model"):
        model = identify_model(job.workdir, job.checkpoint, embeds=job.vectors)
    with locked_folder(job.folder, Manifest.create(model, job.list_settings(), units)):
        finished = list_parts(job.folder)
        counts = count_rows(job.folder, finished)
        remaining = {number: unit for number, unit in enumerate(units) if number not in set(finished)}
        start = time.monotonic()
        if remaining:
            counts += _caption(job, remaining, workers, display, len(units), verbose)
        seconds = time.monotonic() - start
        total = Counts(sum(count.images for count in counts), sum(count.errors for count in counts))
        summary: dict[str, Any] = {"images": total.images, "errors": total.errors, "parts": len(units)}
        write_summary(job.folder, summary)
    new = total.images - sum(count.images for count in counts[: len(finished)])
    speed = f", {new:,} of them now, {new / seconds:.1f} images/s" if remaining else ", all by earlier commands"
    print(f"{escape(job.folder)}: {total.images:,} images in {len(units):,} Parquet files{speed}")
    if total.errors:
        print(f"{total.errors:,} images have an error: see the column `error`", file=sys.stderr)
    return total


def identify_model(workdir: str, checkpoint: str, *, embeds: bool) -> ModelIdentity:
    """Reads a model without using a device, and returns its identity.

    Args:
        workdir: see `Job`.
        checkpoint: see `Job`.
        embeds: whether the model must be able to embed images.

    Raises:
        FileNotFoundError: there is no model.
        WorkdirError: the model must be able to embed images, but has no joint embedding.
    """
    model = read_model(workdir, checkpoint)
    if embeds:
        model.description.check_joint_embedding()
    return ModelIdentity(model.weights.step, fingerprint(model.weights.variables))


def _caption(
    job: Job, units: dict[int, Unit], workers: int, display: Display, total: int, verbose: bool
) -> list[UnitResult]:
    results: list[UnitResult] = []
    images, listed = 0, 0
    phase_text = {"completed": total - len(units), "text": "starting"}
    with (
        display.phase("captioning", total, "parts", **phase_text) as phase,
        contextlib.closing(_caption_all(job, units, workers, verbose)) as new_results,
    ):
        for result in new_results:
            if not results:  # its time includes the start of the workers
                start = time.monotonic()
            else:
                images += result.images
            results.append(result)
            seconds = time.monotonic() - start
            phase.advance(1, f"{images / seconds:.3g} images/s" if images and seconds > 0 else "")
            for text in result.listed[: _LISTED_ERRORS - listed]:
                print(f"error: {escape_message(text)}", file=sys.stderr, flush=True)
                listed += 1
    return results


def _caption_all(job: Job, units: dict[int, Unit], workers: int, verbose: bool) -> Iterator[UnitResult]:
    """Yields the results of all units. If machines are lost, starts workers on those that are left.

    Machines may be lost after the first files are written and before their results arrive, so it takes several losses
    without a result to give up.
    """
    remaining = dict(units)
    losses = 0
    while remaining:
        try:
            with running_ray(workers, verbose=verbose):
                for result in caption_units(dict(remaining), job, workers, verbose=verbose):
                    del remaining[result.number]
                    losses = 0
                    yield result
        except LostMachineError as error:
            losses += 1
            if losses > _LOSSES_WITHOUT_RESULT:
                raise WorkerError(f"{error}: run the same command again, which continues") from error
            print(f"warning: {error}: starting again with those that are left", file=sys.stderr, flush=True)
            workers = 0 if is_cluster() else workers


def output_path(folder: str) -> str:
    """Returns an absolute path or a URL without a slash at its end, because workers have other working folders."""
    return folder.rstrip("/") if is_on_bucket(folder) else os.path.abspath(folder)
