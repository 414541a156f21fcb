"""`--mode=caption`: captions image files."""

from __future__ import annotations

from absl import flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.inference.caption_files import caption_files
from caption_jax.inference.captioner import load


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints one line per image; returns the exit status, which is 1 if an image could not be read."""
    captioner = load(options.workdir, options.checkpoint, spec_from_flags(options, "keep").decode)
    return caption_files(captioner, arguments, options.format, options.context or ())
