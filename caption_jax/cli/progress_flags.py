"""The progress display that the flags of a command select."""

from __future__ import annotations

import jax
from absl import flags

from caption_jax.telemetry.progress import SILENT, Display
from caption_jax.telemetry.progress_displays import open_display


def display_from_flags(options: flags.FlagValues, *, lines: bool = True) -> Display:
    """Returns a display on stderr, which shows nothing with `--quiet` and in processes other than the main process.

    Args:
        options: all flags.
        lines: whether to print lines if stderr is not a terminal.
    """
    return SILENT if options.quiet or jax.process_index() else open_display(lines=lines)
