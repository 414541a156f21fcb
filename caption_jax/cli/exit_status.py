"""Exit statuses, and errors of the user in one line on stderr. docs/command_line.md documents both."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from absl import app, flags

from caption_jax import errors
from input_pipeline.disk_faults import find_disk_fault
from input_pipeline.terminal_text import escape_message

SUCCESS = 0
FAILURE = 1  # an error that the user can fix, or images that could not be read
USAGE = 2  # the command line is wrong
STOPPED = 75  # training was stopped by a signal or a limit, and the same command resumes it (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE

_NEWLINE = "\n  "


def call_with_status(function: Callable[[], int], program: str, *, is_filter: bool = True) -> int:
    """Calls a function that returns an exit status.

    Args:
        function: the function.
        program: see `print_error`.
        is_filter: whether the command may end early if the reader of its output (such as `head`) closes the pipe.

    Returns:
        The exit status. User errors are printed; all other errors propagate.
    """
    try:
        status = function()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not is_filter:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing stdout does not raise again
        return BROKEN_PIPE
    except Exception as error:  # `print_error` re-raises errors that the user cannot fix
        return print_error(error, program)


def print_error(error: Exception, program: str, status: int = FAILURE) -> int:
    """Prints an error that the user can fix on one line, and re-raises any other error.

    Further lines of a message, such as lists, are indented, so that no name in it can look like another message.

    Args:
        error: the error.
        program: the command, with the subcommand if known, whose `--help` a usage error refers to.
        status: exit status of errors other than usage errors.

    Returns:
        The exit status.
    """
    if isinstance(error, app.UsageError | flags.Error):
        print(f"error: {escape_message(' '.join(str(error).split()))} ({program} --help)", file=sys.stderr)
        return USAGE
    message = errors.user_message(error)  # a library may wrap a UserError
    if message is None and (fault := find_disk_fault(error)) is not None:
        message = fault.describe() if fault.path else f"cannot write the output: {fault.describe()}"
    if message is None:
        raise error
    print(f"error: {escape_message(message, _NEWLINE)}", file=sys.stderr)
    return status
