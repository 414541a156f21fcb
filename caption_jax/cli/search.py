"""`--mode=search`: searches an index by text or by image."""

from __future__ import annotations

from absl import app, flags

from caption_jax.retrieval.commands import get_index_folder, search_images


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints one result per line; returns the exit status."""
    if not (options.query or "").strip():
        raise app.UsageError("search requires --query with a text or the path of an image")
    return search_images(
        options.workdir,
        get_index_folder(options.workdir, options.index),
        options.query,
        checkpoint=options.checkpoint,
        top=options.top,
        method=options.search,
        output_format=options.format,
    )
