"""`--mode=caption`: captions image files."""

from __future__ import annotations

from absl import app, flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.inference.caption_files import caption_files
from caption_jax.inference.captioner import load


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints one line per image; returns the exit status, which is 1 if an image could not be read.

    Raises:
        UsageError: there are no arguments.
    """
    if not arguments:
        raise app.UsageError("caption requires images: files, patterns or folders")
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options, lines=False) as display:
        with display.phase("loading the model"):
            captioner = load(
                options.workdir, options.checkpoint, spec.decode, limits=spec.limits, weights=options.weights
            )
        return caption_files(captioner, arguments, options.format, options.context or (), display)
