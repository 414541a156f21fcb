"""Entry point of the command line: parses flags and runs a mode. main.py has an example of each mode."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from types import ModuleType

from absl import app, flags

from caption_jax import errors
from caption_jax.cli import command_flags, stored_config
from caption_jax.cli.platform_setup import set_up_platform
from caption_jax.config_files import find_config
from caption_jax.runtime.process import fast_exit, paused_garbage_collection, restart_with_huge_pages
from caption_jax.telemetry.progress import SILENT, Display
from caption_jax.telemetry.progress_displays import open_display

_HELP = """Train, evaluate and use image captioners.

    caption-jax --config=configs/shapes.py --workdir=runs/shapes
    caption-jax --mode=caption --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
    caption-jax --mode=MODE --workdir=runs/shapes ...

Override keys of the config with flags such as `--config.data.batch_size=64`. All modes except `train` use the config
stored in the workdir, unless --config is set.
"""

# Modes that are too short for huge pages to be worth a restart, and have no background writes at exit.
_SHORT_MODES = ("caption", "search")
_MODES_WITH_ARGUMENTS = ("caption", "index")

flags.disclaim_key_flags()  # the flags then belong to the main script, so `--help` lists them


def main() -> None:
    """Entry point of the installed command `caption-jax`."""
    script = sys.modules["__main__"]
    script.__doc__ = script.__doc__ or _HELP  # `--help` prints it above the flags
    run(sys.argv[0])


def run(script: str) -> None:
    """Runs the command line of this process and ends the process with its exit status.

    Args:
        script: path of the file that Python was started with.
    """
    flag_values = command_flags.read_flags(sys.argv)
    if flag_values.get("mode") not in _SHORT_MODES:
        restart_with_huge_pages(script)  # before any slow imports
    command_flags.define()
    app.run(
        functools.partial(_run_with_flags, script),
        argv=_resolve_config_flag(sys.argv, flag_values),
        flags_parser=functools.partial(_parse_flags, script),
    )


def _resolve_config_flag(argv: list[str], flag_values: dict[str, str]) -> list[str]:
    """Replaces the name of a packaged config with its path.

    Without `--config`, adds the stored config of the workdir in all modes except `train`.
    """
    if "config" in flag_values:
        return command_flags.replace_flag(argv, "config", find_config(flag_values["config"]))
    if flag_values.get("mode", "train") == "train" or "workdir" not in flag_values:
        return argv
    return [*argv[:1], f"--config={stored_config.__file__}:{flag_values['workdir']}", *argv[1:]]


def _parse_flags(script: str, argv: list[str]) -> list[str]:
    """Parses the flags, which reads the config. If that raises a `UserError`, prints it and ends the process."""
    try:
        with paused_garbage_collection(script):  # reading the config imports libraries
            return app.parse_flags_with_usage(argv)
    except errors.UserError as error:
        sys.exit(_print_error(error, script))


def _run_with_flags(script: str, argv: list[str]) -> int:
    """Runs the command after absl has parsed the flags; returns the exit status."""
    options, arguments = flags.FLAGS, argv[1:]
    try:
        _check_usage(options, arguments)
        with paused_garbage_collection(script), _open_starting_display(options) as display, display.phase("starting"):
            set_up_platform(options)
            # The import is here because it imports JAX, which must not happen before the platform is set up.
            module = importlib.import_module(f"caption_jax.cli.{options.mode}")
        status = _run_mode(module, options, arguments)
    except Exception as error:  # `_print_error` re-raises errors that are not user errors
        status = _print_error(error, script)
    if options.mode in _SHORT_MODES:
        fast_exit(script, status)
    return status


def _open_starting_display(options: flags.FlagValues) -> Display:
    """Returns a display for the time before JAX is imported, which takes seconds."""
    return SILENT if options.quiet else open_display(lines=False)


def _check_usage(options: flags.FlagValues, arguments: list[str]) -> None:
    if options.mode not in _MODES_WITH_ARGUMENTS and arguments:
        raise app.UsageError(f"mode {options.mode} takes no arguments, but got {arguments}")
    if options.mode != "train" and options.dry_run:
        raise app.UsageError(f"--dry_run requires --mode=train, got --mode={options.mode}")
    if options.mode != "evaluate" and options.data is not None:
        raise app.UsageError(f"--data requires --mode=evaluate, got --mode={options.mode}")


def _run_mode(module: ModuleType, options: flags.FlagValues, arguments: list[str]) -> int:
    """Calls `run` in the module of the mode, `caption_jax/cli/<mode>.py`."""
    try:
        status = module.run(options, arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if options.mode == "train":
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing stdout does not raise again
        return 141  # 128 + SIGPIPE, because the reader (such as `head`) has closed the pipe


def _print_error(error: Exception, script: str) -> int:
    """Prints a user error on one line and returns the exit status; re-raises any other error."""
    if isinstance(error, app.UsageError):
        print(f"error: {error} ({os.path.basename(script)} --help lists all flags)", file=sys.stderr)
        return 2
    message = errors.user_message(error)  # a library may wrap a UserError
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)
    return 1
