"""Entry point of the command line: finds the subcommand, parses its flags and runs it.

docs/command_line.md describes the subcommands, the flags and the exit statuses.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import app, flags

from caption_jax.cli import command_flags, help_pages, stored_config, workdir_flag
from caption_jax.cli.command_line import CommandLine, parse_command_line
from caption_jax.cli.exit_status import FAILURE, INTERRUPTED, STOPPED, SUCCESS, USAGE, call_with_status, print_error
from caption_jax.cli.flag_errors import check_arguments, check_flag_names, explain_flag_error
from caption_jax.cli.platform_setup import BULK_MODES, set_up_platform
from caption_jax.cli.process_exit import call_and_exit, has_peers, is_main_process, joined_end
from caption_jax.cli.subcommands import MODES, SUBCOMMANDS
from caption_jax.config_files import load_config
from caption_jax.runtime.liveness import flush_output
from caption_jax.runtime.process import fast_exit, is_command, paused_garbage_collection, restart_with_malloc_settings
from caption_jax.runtime.signals import SignalHandling, handled_signals
from input_pipeline.terminal_text import escape

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# Modes that are too short for huge pages to be worth a restart, and have no background writes at exit.
_SHORT_MODES = ("caption", "search")
_FAST_EXITS = (*_SHORT_MODES, "serve")  # a server may be stopped while a thread is compiling
_RESUMABLE = ("train", *BULK_MODES)

flags.disclaim_key_flags()


def main() -> None:
    """Entry point of the installed command `caption-jax`."""
    run(sys.argv[0])


def run(script: str) -> None:
    """Runs the command line of this process and ends the process with its exit status.

    Args:
        script: path of the file that Python was started with.
    """
    with handled_signals() as signals:
        try:
            sys.exit(_run_command_line(script, get_program(script), signals))
        except SystemExit as end:  # also of absl
            if is_command(script) and signals.received is None:
                flush_output()
                signals.keep_status(end.code if isinstance(end.code, int) else FAILURE if end.code else SUCCESS)
            raise
        except KeyboardInterrupt:
            if signals.received is None:  # raised by something else, as in a notebook
                print("interrupted", file=sys.stderr)
                sys.exit(INTERRUPTED)
            _end_interrupted(script, signals)
        except BaseException:
            if signals.raised:  # code that the signal interrupted, such as an import, may raise another error
                _end_interrupted(script, signals)
            raise


def _end_interrupted(script: str, signals: SignalHandling) -> None:
    """Ends the process after a signal, without waiting for threads and exit handlers."""
    remedy = "; the same command resumes the run" if signals.status == STOPPED else ""
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(f"interrupted ({signal.Signals(signals.received).name}){remedy}", file=sys.stderr)
    status = signals.get_status(signals.received)
    fast_exit(script, status)
    sys.exit(status)


def get_program(script: str) -> str:
    """Returns the command that starts a script, for help and error messages."""
    name = os.path.basename(script)
    if name == "__main__.py":
        return "python -m caption_jax"
    return f"python {name}" if name.endswith(".py") else name


def _run_command_line(script: str, program: str, signals: SignalHandling) -> int:
    try:
        line = parse_command_line(flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=True))
    except (app.UsageError, flags.Error) as error:
        return print_error(error, program)
    if line.help:
        return call_with_status(functools.partial(_print_help, line, program), program)
    if line.subcommand in MODES:
        if line.subcommand in _RESUMABLE:
            signals.status = STOPPED
        return _run_mode(line, script, f"{program} {line.subcommand}")
    module = importlib.import_module(f"caption_jax.cli.{line.subcommand}")
    call = functools.partial(module.run, list(line.argv), f"{program} {line.subcommand}")
    return call_with_status(call, f"{program} {line.subcommand}")


def _print_help(line: CommandLine, program: str) -> int:
    if line.help == "full":
        text = help_pages.format_all_flags(program)
    elif line.subcommand:
        text = help_pages.format_subcommand(SUBCOMMANDS[line.subcommand], program)
    else:
        text = help_pages.format_overview(program)
    print(text, end="")
    return SUCCESS


def _run_mode(line: CommandLine, script: str, program: str) -> int:
    """Runs a subcommand that takes a workdir and a config; ends the process with its exit status."""
    if line.subcommand not in _SHORT_MODES:
        restart_with_malloc_settings(script)  # before any slow imports
    try:
        check_flag_names(flags.FLAGS, line)
        argv = workdir_flag.resolve_name(line.subcommand, workdir_flag.add_default(line.subcommand, line.argv))
        # Reading the config imports libraries.
        with paused_garbage_collection(script), _show_start(is_quiet="quiet" in command_flags.read_flags(argv)):
            config = _load_config(line.subcommand, argv)
    except Exception as error:  # `print_error` re-raises errors that the user cannot fix
        return print_error(error, program)
    argv = [f"--mode={line.subcommand}", *command_flags.remove_flag(argv, "config")]
    try:
        command_flags.define(flags.FLAGS, config, argv)
    except Exception as error:  # the config may reject a value with any type; `print_error` re-raises bugs
        return print_error(error, program, USAGE)
    app.run(
        functools.partial(_run_with_flags, line, script, program),
        argv=[script, *argv],
        flags_parser=functools.partial(_parse_flags, line, program),
    )
    raise AssertionError("app.run ends the process")


def _load_config(subcommand: str, argv: list[str]) -> ConfigDict:
    """Loads the config of the flag, or the config stored in the workdir in all modes except `train`."""
    values = command_flags.read_flags(argv)
    workdir_flag.check(subcommand, values["workdir"], writes="dry_run" not in values)
    if values.get("config"):
        return load_config(values["config"])
    if subcommand == "soup":  # whose workdir is new
        return stored_config.get_config_of_model(_get_first_model(argv))
    return stored_config.get_config(values["workdir"])


def _get_first_model(argv: list[str]) -> str:
    name = command_flags.find_first_argument(argv)
    if not name:
        raise app.UsageError("soup requires the models to average: workdirs of runs, such as runs/a runs/b")
    return name


def _parse_flags(line: CommandLine, program: str, argv: list[str]) -> list[str]:
    """Parses the flags; ends the process with a one-line error if that fails. Returns the other arguments."""
    flags.FLAGS.set_gnu_getopt(True)  # flags may follow other arguments
    try:
        arguments = flags.FLAGS(argv)[1:]
        check_arguments(line.subcommand, flags.FLAGS, arguments)
        return arguments
    except (flags.Error, TypeError, ValueError, KeyError, AttributeError) as error:
        usage_error = app.UsageError(explain_flag_error(error, flags.FLAGS))
        sys.exit(print_error(usage_error, program))
    except app.UsageError as error:
        sys.exit(print_error(error, program))


def _run_with_flags(line: CommandLine, script: str, program: str, arguments: list[str]) -> int:
    """Runs the mode after absl has parsed the flags; returns the exit status."""

    def run_module() -> int:
        options = flags.FLAGS
        with joined_end():
            with paused_garbage_collection(script), _show_start(is_quiet=options.quiet):
                set_up_platform(options)
                if line.subcommand != "train":  # which treats SIGTERM as jax.distributed does
                    with handled_signals() as signals:
                        signals.reinstall()
                # The import is here because it imports JAX, which must not happen before the platform is set up.
                module = importlib.import_module(f"caption_jax.cli.{line.subcommand.replace('-', '_')}")
            if not command_flags.read_flags(line.argv).get("workdir"):
                _announce_default(line.subcommand, options)
            return module.run(options, arguments)

    is_filter = line.subcommand != "train"
    status = call_and_exit(lambda: call_with_status(run_module, program, is_filter=is_filter))
    if (line.subcommand in _FAST_EXITS or status == FAILURE) and not has_peers():
        # After a failure, threads of libraries may wait for each other for minutes, such as those of a failed save.
        fast_exit(script, status)
    return status


def _announce_default(subcommand: str, options: flags.FlagValues) -> None:
    """Prints which workdir or model is used without `--workdir`. Raises ConfigError if it holds a run on other data."""
    if subcommand in workdir_flag.WITHOUT_WORKDIR:
        return
    is_silent = options.quiet or not is_main_process()
    if subcommand in workdir_flag.WITH_DEMO:
        if not is_silent:
            print("using the demo model, which is small (set --workdir to use another)", file=sys.stderr, flush=True)
        return
    workdir_flag.check_default(options.workdir, options.config.data.root)
    if not is_silent:
        print(f"workdir: {escape(options.workdir)} (set --workdir to use another)", flush=True)


@contextlib.contextmanager
def _show_start(*, is_quiet: bool) -> Iterator[None]:
    """Shows on a terminal that the command is starting, while it imports JAX, which takes seconds."""
    from caption_jax.telemetry.progress import SILENT
    from caption_jax.telemetry.progress_displays import open_display

    with SILENT if is_quiet else open_display(lines=False) as display, display.phase("starting"):
        yield
