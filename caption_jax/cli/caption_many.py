"""`--mode=caption-many`: captions collections of images with Ray."""

from __future__ import annotations

from absl import flags

from caption_jax.bulk.bulk_run import run_job
from caption_jax.cli.bulk_flags import display_from_bulk_flags, job_from_flags, units_from_flags


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes Parquet files; returns the exit status, which is 1 if an image could not be read.

    Raises:
        UsageError: there are no arguments or no `--out`, or nothing matches the arguments.
    """
    job = job_from_flags(options, arguments, vectors=options.vectors, alternatives=options.alternatives)
    with display_from_bulk_flags(options) as display:
        units = units_from_flags(options, arguments, display)
        counts = run_job(job, units, options.workers, display, verbose=options.verbose)
    return 1 if counts.errors else 0
