"""`--mode=search`: searches an index by text or by image."""

from __future__ import annotations

from absl import app, flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.retrieval.commands import get_index_folder, search_images


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints one result per line; returns the exit status.

    Raises:
        UsageError: there is no query, or one as an argument and another as a flag.
    """
    if arguments and options.query is not None:
        raise app.UsageError(f"search takes one query, but got --query={options.query} and {' '.join(arguments)}")
    query = " ".join(arguments) or options.query or ""  # several words without quotes are one query
    if not query.strip():
        raise app.UsageError("search requires --query or an argument: a text or the path of an image")
    return search_images(
        options.workdir,
        get_index_folder(options.workdir, options.index),
        query,
        checkpoint=options.checkpoint,
        top=options.top,
        method=options.search,
        output_format=options.format,
        spec=spec_from_flags(options, "defer"),
    )
