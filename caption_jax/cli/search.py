"""`--mode=search`: finds the indexed images that fit words or another image."""

from __future__ import annotations

from absl import app, flags

from caption_jax.retrieval.commands import index_folder, search_images


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints a line per image found; returns the exit status."""
    if not (options.query or "").strip():
        raise app.UsageError("search for what? Give words or the path of an image with --query")
    return search_images(
        options.workdir,
        index_folder(options.workdir, options.index),
        options.query,
        checkpoint=options.checkpoint,
        top=options.top,
        method=options.search,
        form=options.format,
    )
