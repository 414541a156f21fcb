"""`--mode=index-many`: embeds and captions collections of images with Ray, and adds them to a search index."""

from __future__ import annotations

from absl import flags

from caption_jax.bulk.bulk_run import identify_model, run_job
from caption_jax.bulk.parquet_index import index_parts
from caption_jax.cli.bulk_flags import display_from_bulk_flags, job_from_flags, units_from_flags
from caption_jax.retrieval.commands import get_index_folder, print_changes


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes Parquet files and an index; returns the exit status, which is 1 if an image could not be read.

    Raises:
        UsageError: there are no arguments or no `--out`, or nothing matches the arguments.
    """
    index_folder = get_index_folder(options.workdir, options.index)
    captions = options.captions != "none"
    job = job_from_flags(options, arguments, vectors=True, captions=captions, weights="float32")
    with display_from_bulk_flags(options) as display:
        units = units_from_flags(options, arguments, display)
        counts = run_job(job, units, options.workers, display, verbose=options.verbose)
        model = identify_model(job.workdir, job.checkpoint, embeds=True)
        size, changes = index_parts(job.folder, index_folder, model, display)
        print_changes(index_folder, size, changes)
    return 1 if counts.errors else 0
