"""The pages that `--help` and `--helpfull` print."""

from __future__ import annotations

import re
import textwrap

from absl import flags

from caption_jax.cli import command_flags
from caption_jax.cli.subcommands import SUBCOMMANDS, Subcommand, find_users

_WIDTH = 100
_VALUES = {"config": "NAME", **dict.fromkeys(("data", "image_folder", "index", "out", "workdir"), "FOLDER")}
_PAGE = """Train, evaluate and use image captioners.

usage: {program} SUBCOMMAND [ARGUMENTS] [FLAGS]

{subcommands}

`{program} SUBCOMMAND --help` describes a subcommand, and `--helpfull` all flags.

examples:
  {program} train --config=shapes --config.train.epochs=3
  {program} caption --workdir=runs/shapes photo.jpg folder/ 'more/*.png'
"""


def format_overview(program: str) -> str:
    """Returns the list of subcommands, for `PROGRAM --help`."""
    lines = [f"  {subcommand.name:<12} {subcommand.summary}" for subcommand in SUBCOMMANDS.values()]
    return _PAGE.format(program=program, subcommands="\n".join(lines))


def format_subcommand(subcommand: Subcommand, program: str) -> str:
    """Returns the usage, flags and examples of a subcommand, for `PROGRAM SUBCOMMAND --help`."""
    values = flags.FlagValues()
    command_flags.define(values)
    summary = f"{subcommand.summary[0].upper()}{subcommand.summary[1:]}. {subcommand.notes}".strip()
    lines = [f"usage: {program} {subcommand.name} {subcommand.usage}", "", textwrap.fill(summary, _WIDTH)]
    if subcommand.flags:
        common = [name for name in values if not find_users(name) and name != "mode"]
        lines += ["", "flags:"]
        for name in (*subcommand.flags, *common):
            lines.append(_format_flag(values[name], subcommand.descriptions.get(name, "")))
        lines.append(_format_entry("--config.KEY=VALUE", "Sets a key of the config, such as config.train.epochs."))
    lines += ["", "examples:", *(f"  {program} {example}" for example in subcommand.examples)]
    return "\n".join(lines) + "\n"


def format_all_flags(program: str) -> str:
    """Returns the flags of all subcommands, and those of the libraries that process flags and logs."""
    values = flags.FlagValues()
    command_flags.define(values)
    lines = [f"usage: {program} SUBCOMMAND [ARGUMENTS] [FLAGS]", "", "flags, with the subcommands that use them:"]
    for name in values:
        users = ", ".join(find_users(name))
        lines.append(_format_flag(values[name], f"{users}: {_clean(values[name].help)}" if users else ""))
    libraries = (name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("absl."))
    return "\n".join([*lines, "", *(flags.FLAGS.module_help(name) for name in sorted(libraries))]) + "\n"


def _format_flag(flag: flags.Flag, description: str = "") -> str:
    metavar = "" if flag.boolean else f"={_format_value(flag)}"
    default = "" if flag.default in (None, False) else f" (default: {flag.default_as_str.strip(chr(39))})"
    return _format_entry(f"--{flag.name}{metavar}", f"{description or _clean(flag.help)}{default}")


def _clean(description: str) -> str:
    """Removes the choices and the hint about repeated flags that absl adds to a description."""
    return re.sub(r"^<[^>]*>: |;\s+repeat this option to specify a list of values$", "", description)


def _format_value(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return "MODE" if flag.name == "mode" else "|".join(choices)
    if flag.flag_type() in ("int", "float"):
        return "N"
    return _VALUES.get(flag.name, flag.name.upper())


def _format_entry(name: str, description: str) -> str:
    indent = " " * 28
    text = textwrap.fill(" ".join(description.split()), _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"  {name:<25} {text.lstrip()}" if len(name) <= 25 else f"  {name}\n{text}"
