"""One-line messages for flags that cannot be parsed, or that a subcommand does not use."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence

from absl import app, flags, logging

from caption_jax.cli import command_flags
from caption_jax.cli.command_line import CommandLine
from caption_jax.cli.subcommands import SERVING_FLAGS, SUBCOMMANDS, find_users

_FLAGS_OF_ONE_MODE = (
    "data",
    "weights",
    "dry_run",
    "max_steps_this_run",
    "distributed",
    "heartbeat",
    "image_format",
    "jpeg_quality",
    *SERVING_FLAGS,
)  # the others have always been accepted in every mode
_VALUE_ERROR = re.compile(r"flag -*(?P<flag>[\w.\[\]'\"]+)=(?P<value>.*?): (?P<reason>.*)", re.DOTALL)


def check_flag_names(values: flags.FlagValues, line: CommandLine) -> None:
    """Checks the names of the flags before they are parsed, because that requires the config.

    Args:
        values: flags of libraries.
        line: the command line. If it uses `--mode` instead of a subcommand, most flags of other modes are accepted.

    Raises:
        UsageError: a flag does not exist or belongs to another subcommand. The message names a similar flag, or the
            config key of this name.
    """
    known = flags.FlagValues()
    command_flags.define(known)
    takes_value = False
    for argument in itertools.takewhile("--".__ne__, line.argv):
        name, equals, _ = argument.lstrip("-").partition("=")
        is_value, takes_value = takes_value, False
        if is_value or not argument.startswith("-") or not name or name.startswith("config."):
            continue
        flag = _find_flag(name, (known, values))
        if flag is None:
            raise app.UsageError(_explain_unknown_flag(argument, known, line.subcommand))
        takes_value = not flag.boolean and not equals
        users = find_users(flag.name)
        is_rejected = not line.has_mode_flag or flag.name in _FLAGS_OF_ONE_MODE
        if users and line.subcommand not in users:
            if is_rejected:
                raise app.UsageError(f"{line.subcommand} does not use --{flag.name}, a flag of {', '.join(users)}")
            logging.warning("--%s has no effect in --mode=%s", flag.name, line.subcommand)


def check_arguments(subcommand: str, values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Checks the arguments that are not flags, and that required flags are set.

    Args:
        subcommand: name of the subcommand.
        values: all flags, parsed.
        arguments: the arguments that are not flags.

    Raises:
        UsageError: there are arguments for a subcommand that takes none, or a flag is missing.
    """
    if arguments and not SUBCOMMANDS[subcommand].takes_arguments:
        hint = "; the subcommand must come first" if arguments[0] in SUBCOMMANDS else ""
        raise app.UsageError(f"{subcommand} takes no arguments, but got {' '.join(arguments)}{hint}")
    if subcommand == "plan" and not values.topology:
        raise app.UsageError("plan requires --topology=DEVICES, such as v5e:16x16, h100:8 or cpu:8")
    if subcommand == "prepare" and not values.out:
        raise app.UsageError("prepare requires --out=FOLDER, the folder for the shards")
    if subcommand == "export" and not values.to:
        raise app.UsageError(f"export requires --to=FORMAT, one of {', '.join(command_flags.EXPORT_FORMATS)}")


def _find_flag(name: str, groups: Sequence[flags.FlagValues]) -> flags.Flag | None:
    for values in groups:
        if name in values:
            return values[name]
        negated = name.removeprefix("no")
        if negated in values and values[negated].boolean:
            return values[negated]
    return None


def explain_flag_error(error: Exception, values: flags.FlagValues) -> str:
    """Returns a one-line message for an error of absl or ml_collections about the value of a flag."""
    message = " ".join(str(error).split())
    match = _VALUE_ERROR.fullmatch(message)
    if not isinstance(error, flags.IllegalFlagValueError) or not match:
        return message
    flag, value, reason = match["flag"], match["value"], match["reason"]
    if re.search("invalid literal|could not convert|Non-boolean", reason):
        return f"--{flag}={value}: the value must be {_describe_type(values, flag)}"
    if choices := re.fullmatch(r"value should be one of <(.*)>", reason):
        return f"--{flag}={value}: the value must be one of {', '.join(choices[1].split('|'))}"
    return f"--{flag}={value}: {reason}"


def _explain_unknown_flag(argument: str, known: flags.FlagValues, subcommand: str) -> str:
    name, equals, value = argument.lstrip("-").partition("=")
    key = name.replace("-", "_")
    others = [flag for flag in known if flag not in (*SUBCOMMANDS[subcommand].flags, *SERVING_FLAGS)]
    for names in (SUBCOMMANDS[subcommand].flags, others):
        if similar := difflib.get_close_matches(key, names, n=1, cutoff=0.7):
            return f"unknown flag --{name}; did you mean --{similar[0]}{equals}{value}?"
    from caption_jax.cli.config_flag import find_keys  # imports ml_collections, which is not needed for help
    from caption_jax.config import default_config

    if keys := find_keys(default_config(), key):
        flag = " or ".join(f"{path}{equals}{value}" for path in keys)
        return f"unknown flag --{name}; did you mean the config key {flag}?"
    return f"unknown flag --{name}; config keys are set with --config.KEY=VALUE"


def _describe_type(values: flags.FlagValues, flag: str) -> str:
    names = {"int": "an integer", "float": "a number", "bool": "true or false"}
    kind = values[flag].flag_type() if flag in values else ""
    return names.get(kind, f"a valid {kind or 'value'}")
