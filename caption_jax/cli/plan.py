"""`--mode=plan`: estimates the memory and time of a run on devices that need not be available."""

from __future__ import annotations

from absl import flags

from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.cli.subcommands import EPOCH_FLAGS
from caption_jax.planning.epoch import EpochRequest
from caption_jax.planning.plan import Request, plan
from caption_jax.planning.table import print_plan
from input_pipeline.files import absolute_path


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Prints memory, time and the largest batch size; returns the exit status."""
    request = Request(
        options.topology,
        tuple(options.programs),
        options.phase,
        images=options.images_per_chip,
        vocabulary=options.vocabulary,
        compilations=options.compilations,
        epoch=EpochRequest(**{name: options[name].value for name in EPOCH_FLAGS}),
    )
    with display_from_flags(options) as display:
        result = plan(spec_from_flags(options), absolute_path(options.workdir), request, display)
    print_plan(result)
    return 0
