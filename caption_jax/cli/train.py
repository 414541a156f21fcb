"""`--mode=train`: trains a model, or resumes training in an existing workdir."""

from __future__ import annotations

import functools

import jax
from absl import flags

from caption_jax.cli.closing_summary import print_end_of_training
from caption_jax.cli.command_flags import spec_from_flags
from caption_jax.cli.evaluate import print_scored_evaluation
from caption_jax.cli.exit_status import STOPPED, SUCCESS
from caption_jax.cli.progress_flags import display_from_flags
from caption_jax.errors import ConfigError
from caption_jax.runs.checkpoints import find_saved_step
from caption_jax.runtime.liveness import current_watch
from caption_jax.training.dry_run import dry_run, print_dry_run
from caption_jax.training.loop import train_run
from caption_jax.training.start_options import StartOptions


def run(options: flags.FlagValues, arguments: list[str]) -> int:
    """Trains to the last step and prints the evaluation of the best weights; returns the exit status.

    If the run stops before, the status is `STOPPED`, and the same command resumes it.

    With `--dry_run`, prints the spec and the loss of the first step instead.
    """
    spec = spec_from_flags(options)
    start = StartOptions(_checkpoint_step(options), options.max_steps_this_run, options.allow_data_change)
    if options.dry_run:
        with display_from_flags(options) as display:
            result = dry_run(spec, options.workdir, display, allow_data_change=start.allow_data_change)
        print_dry_run(result)
        return SUCCESS
    if (watch := current_watch()) is not None:
        watch.set_saved_step(functools.partial(find_saved_step, options.workdir))
    with display_from_flags(options) as display:
        result = train_run(spec, options.workdir, display, start)
    print_scored_evaluation(result.evaluation)
    if jax.process_index() == 0:
        print_end_of_training(options.workdir, result.evaluation)
    return SUCCESS if result.is_complete else STOPPED


def _checkpoint_step(options: flags.FlagValues) -> int | None:
    """Returns the step of the checkpoint to resume from; None for the newest intact one."""
    if options.checkpoint == "best" and options["checkpoint"].present:
        raise ConfigError("--checkpoint=best: training resumes from the last checkpoint or a step, such as 1200")
    return int(options.checkpoint) if options.checkpoint.isdigit() else None
