"""`--mode=export`: writes a trained model in a format for other programs and other people."""

from __future__ import annotations

from absl import flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.export.exporter import export_model
from input_pipeline.terminal_text import escape


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the folder and prints its path; returns the exit status."""
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options) as display, display.phase("exporting"):
        folder = export_model(options.workdir, options.to, options.out or "", options.checkpoint, spec)
    print(escape(str(folder)))
    return 0
