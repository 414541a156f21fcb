"""The command line before its flags are parsed: the subcommand, and requests for help."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from absl import app

from caption_jax.cli.command_flags import read_flags, remove_flag
from caption_jax.cli.subcommands import MODES, SUBCOMMANDS

_HELP = ("-h", "--h", "-help", "--help", "-helpshort", "--helpshort", "-?")
_HELP_FULL = ("-helpfull", "--helpfull")


@dataclass(frozen=True)
class CommandLine:
    """A command line.

    Attributes:
        subcommand: name of the subcommand; "" if only help was requested.
        argv: arguments without the subcommand and without `--mode`.
        help: the requested help page, "short" or "full"; "" if none.
        has_mode_flag: whether the subcommand was set by `--mode`, or is the default, instead of by an argument.
    """

    subcommand: str
    argv: tuple[str, ...]
    help: str = ""
    has_mode_flag: bool = False


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Finds the subcommand: the first argument, or the value of `--mode`, which is "train" by default.

    Args:
        argv: arguments of the command, without the name of the program.

    Raises:
        UsageError: there are no arguments, or the subcommand does not exist.
    """
    help_page = _find_help(argv)
    if argv and argv[0] == "help":
        argv, help_page = argv[1:], help_page or "short"
    first = argv[0] if argv and not argv[0].startswith("-") else ""
    mode = read_flags(argv).get("mode", "")
    if first:
        _check_name(first, SUBCOMMANDS, "subcommand ")
        if first not in MODES:
            return CommandLine(first, tuple(argv[1:]), "" if first == "score" else help_page)
        if mode not in ("", first):
            raise app.UsageError(f"the subcommand {first} contradicts --mode={mode}")
        return CommandLine(first, tuple(remove_flag(argv[1:], "mode")), help_page)
    if mode:
        _check_name(mode, MODES, "--mode=")
    if not argv and not help_page:
        raise app.UsageError(f"a subcommand is missing, one of {', '.join(SUBCOMMANDS)}")
    subcommand = mode or ("" if help_page else "train")
    return CommandLine(subcommand, tuple(remove_flag(argv, "mode")), help_page, has_mode_flag=True)


def _find_help(argv: Sequence[str]) -> str:
    for argument in argv:
        if argument == "--":
            break
        if argument in _HELP or argument in _HELP_FULL:
            return "full" if argument in _HELP_FULL else "short"
    return ""


def _check_name(name: str, choices: Sequence[str], prefix: str) -> None:
    if name not in choices:
        similar = difflib.get_close_matches(name, choices, n=1)
        remedy = f"did you mean {similar[0]}?" if similar else f"expected one of {', '.join(choices)}"
        raise app.UsageError(f"unknown {prefix}{name}; {remedy}")
