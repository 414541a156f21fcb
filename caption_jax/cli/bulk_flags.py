"""The flags of `caption-many` and `index-many`. Nothing here uses a device, which the workers need."""

from __future__ import annotations

from absl import app, flags

from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.bulk_run import output_path
from caption_jax.bulk.work_units import Unit, find_units
from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.inference.caption_files import describe_no_match
from caption_jax.telemetry.progress import SILENT, Display
from caption_jax.telemetry.progress_displays import open_display


def job_from_flags(
    options: flags.FlagValues,
    arguments: list[str],
    *,
    vectors: bool,
    captions: bool = True,
    alternatives: int = 0,
    weights: str = "",
) -> Job:
    """Returns the job of the flags.

    Args:
        options: all flags.
        arguments: the other arguments.
        vectors: whether to embed the images.
        captions: whether to caption the images.
        alternatives: number of captions besides the best.
        weights: dtype of the weights; that of the flag by default.

    Raises:
        UsageError: there are no arguments or no `--out`.
    """
    if not arguments:
        raise app.UsageError(
            f"{options.mode} requires images or shards: files, patterns, folders or prefixes of buckets"
        )
    if not options.out:
        raise app.UsageError(
            f"{options.mode} requires --out=FOLDER, a new folder for the Parquet files, or one to continue"
        )
    spec = spec_from_flags(options, "defer")
    return Job(
        output_path(options.workdir),
        options.checkpoint,
        spec.decode,
        spec.limits,
        output_path(options.out),
        weights=weights or options.weights,
        captions=captions,
        vectors=vectors,
        alternatives=alternatives,
        batch_size=options.images_per_batch,
        images_per_part=options.images_per_part,
    )


def units_from_flags(options: flags.FlagValues, arguments: list[str], display: Display) -> list[Unit]:
    """Lists the units of work. Raises UsageError if nothing matches the arguments."""
    with display.phase("listing the images"):
        units = find_units(arguments, options.images_per_part)
    if not units:
        raise app.UsageError(f"{describe_no_match(arguments)}, or shards: .tar, .parquet, .arrow or .array_record")
    return units


def display_from_bulk_flags(options: flags.FlagValues) -> Display:
    """Returns a display on stderr, which shows nothing with `--quiet`; unlike `display_from_flags`, without JAX."""
    return SILENT if options.quiet else open_display()
