"""`--mode=index`: adds images to a search index."""

from __future__ import annotations

from absl import app, flags

from caption_jax.bulk.bulk_run import identify_model
from caption_jax.bulk.output_folder import is_output_folder
from caption_jax.bulk.parquet_index import index_parts
from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.retrieval.commands import get_index_folder, index_images, match_images, open_split, print_changes


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Indexes image files or the images of a split; returns the exit status, 1 if an image could not be read."""
    has_split = options["split"].present
    if arguments and has_split:
        raise app.UsageError(f"index takes either files or --split, not both --split={options.split} and {arguments}")
    if not arguments and not has_split:
        raise app.UsageError("index requires image files or folders, or a split of the data with --split")
    if len(arguments) == 1 and is_output_folder(arguments[0]):
        return _index_parquet(options, arguments[0])
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options) as display:
        with display.phase("reading the data"):
            images = match_images(arguments) if arguments else open_split(spec.data, options.split, spec.limits)
        return index_images(
            options.workdir,
            get_index_folder(options.workdir, options.index),
            images,
            checkpoint=options.checkpoint,
            spec=spec,
            captions=options.captions,
            missing=options.missing,
            display=display,
        )


def _index_parquet(options: flags.FlagValues, folder: str) -> int:
    """Indexes the vectors that `caption-many --vectors` or `index-many` has written."""
    index_folder = get_index_folder(options.workdir, options.index)
    with display_from_flags(options) as display:
        model = identify_model(options.workdir, options.checkpoint, embeds=True)
        size, changes = index_parts(folder, index_folder, model, display)
    print_changes(index_folder, size, changes)
    return 0
