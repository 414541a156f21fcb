"""`--mode=neighbours`: finds the indexed images nearest to each image of a split, and stores them."""

from __future__ import annotations

from absl import flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.retrieval.commands import get_index_folder, open_split, store_neighbours


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Writes the neighbours to the folder of the index; returns the exit status."""
    spec = spec_from_flags(options, "defer")
    with display_from_flags(options) as display:
        with display.phase("reading the data"):
            split = open_split(spec.data, options.split, spec.limits)
        return store_neighbours(
            options.workdir,
            get_index_folder(options.workdir, options.index),
            split,
            checkpoint=options.checkpoint,
            count=options.top,
            spec=spec,
            display=display,
        )
