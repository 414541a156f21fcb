"""Train, evaluate and use image captioners.

    caption-jax --config=configs/shapes.py --workdir=runs/shapes
    caption-jax --config=configs/shapes.py --workdir=runs/shapes --dry_run
    caption-jax --mode=evaluate --workdir=runs/shapes --split=test
    caption-jax --mode=evaluate --workdir=runs/shapes --data=FOLDER
    caption-jax --mode=tune --workdir=runs/shapes --split=val
    caption-jax --mode=caption --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    caption-jax --mode=index --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    caption-jax --mode=search --workdir=runs/shapes --query='a dog on the beach'
    caption-jax --mode=neighbours --workdir=runs/shapes --split=train
    caption-jax --mode=plan --config=configs/coco.py --workdir=runs/coco --topology=v5e:16x16

Keys of the config are overridden as `--config.data.batch_size=64`. All modes but `train` take the config that the
workdir holds, unless another one is named.
"""

from __future__ import annotations

import importlib
import os
import sys

from absl import app, flags

from caption_jax.cli import command_flags, stored_config
from caption_jax.cli.platform_setup import set_up_platform
from caption_jax.runtime.process import end_at_once, restart_with_huge_pages

# Over before huge pages pay for a restart, and with nothing left to be written in the background.
_SHORT_MODES = ("caption", "search")
_MODES_WITH_ARGUMENTS = ("caption", "index")

flags.disclaim_key_flags()  # they are those of main.py or of the installed script: `--help` shows their flags only


def main() -> None:
    """The installed command `caption-jax`."""
    script = sys.modules["__main__"]
    script.__doc__ = script.__doc__ or __doc__  # what `--help` prints above the flags
    run(sys.argv[0])


def run(script: str) -> None:
    """Runs the command line of this process and ends the process with its exit status.

    Args:
        script: path of the file that Python was started with.
    """
    typed = command_flags.typed(sys.argv)
    if typed.get("mode") not in _SHORT_MODES:
        restart_with_huge_pages(script)  # before anything is imported that takes long
    command_flags.define()
    app.run(lambda argv: _run_command(script, argv), argv=_with_stored_config(sys.argv, typed))


def _run_command(script: str, argv: list[str]) -> int:
    """`_run_mode` for a shell: a `UserError` is printed as one line; an error of the program keeps its traceback."""
    options = flags.FLAGS
    try:
        status = _run_mode(options, argv[1:])
        if options.mode in _SHORT_MODES:
            end_at_once(script, status)
        return status
    except app.UsageError as error:
        print(f"error: {error} ({os.path.basename(script)} --help lists all flags)", file=sys.stderr)
        return 2
    except Exception as error:  # a library may have raised its own from a UserError
        from caption_jax.errors import message_for_the_user

        message = message_for_the_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1


def _run_mode(options: flags.FlagValues, arguments: list[str]) -> int:
    """Runs one mode; its result is the process's exit status."""
    if options.mode not in _MODES_WITH_ARGUMENTS and arguments:
        raise app.UsageError(f"mode {options.mode} takes no arguments, but got {arguments}")
    if options.mode != "train" and options.dry_run:
        raise app.UsageError(f"--dry_run is of mode train, not of mode {options.mode}")
    if options.mode != "evaluate" and options.data is not None:
        raise app.UsageError(f"--data is of mode evaluate, not of mode {options.mode}")
    set_up_platform(options)
    mode = importlib.import_module(f"caption_jax.cli.{options.mode}")  # only now: JAX starts on the platform as set up
    try:
        status = mode.run(options, arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if options.mode == "train":
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would fail once more
        return 141  # who read our lines (`| head`) has seen enough: what a shell says of a closed pipe


def _with_stored_config(argv: list[str], typed: dict[str, str]) -> list[str]:
    """Adds the config of the run in the workdir for the modes that can use the config a run was trained with."""
    if typed.get("mode", "train") == "train" or "config" in typed or "workdir" not in typed:
        return argv
    return [*argv[:1], f"--config={stored_config.__file__}:{typed['workdir']}", *argv[1:]]
