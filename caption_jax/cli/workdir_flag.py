"""The flag `--workdir`: its default, and checks before any work is done."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from absl import app

from caption_jax.cli.command_flags import read_flags, remove_flag
from caption_jax.config_files import list_configs
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.named_models import is_named, locate_demo, locate_model
from input_pipeline.files import is_on_bucket

_RUNS = "runs"
_WITH_DEFAULT = ("train", "plan")
WITHOUT_WORKDIR = ("prepare",)
WITH_DEMO = ("caption", "caption-many", "serve")  # which use the demo model if `--workdir` is missing
_WRITING = ("train", "evaluate", "tune", "soup", "plan")  # the others write to the folder of the index, or nothing


def add_default(subcommand: str, argv: Sequence[str]) -> list[str]:
    """Adds `--workdir=runs/NAME` to the flags of training or planning with `--config=NAME`, or the demo model.

    Args:
        subcommand: name of the subcommand.
        argv: flags and arguments.

    Returns:
        `argv` with a workdir.

    Raises:
        UsageError: `--config` or `--workdir` is missing and has no default.
        MissingFileError: there is no demo model.
    """
    values = read_flags(argv)
    workdir, config = values.get("workdir", ""), values.get("config", "")
    if "workdir" not in values and subcommand in WITH_DEMO:
        return [f"--workdir={locate_demo()}", *argv]
    _check_required(subcommand, workdir, config)
    if subcommand in WITHOUT_WORKDIR:
        return ["--workdir=", *argv]
    if workdir:
        return list(argv)
    workdir = os.path.join(_RUNS, os.path.basename(config).removesuffix(".py"))
    return [f"--workdir={workdir}", *remove_flag(argv, "workdir")]


def resolve_name(subcommand: str, argv: Sequence[str]) -> list[str]:
    """Replaces the name of a model in `--workdir` by its folder, which is downloaded first if needed.

    Raises:
        UsageError: the subcommand writes to its workdir.
        UserError: see `locate_model`.
    """
    workdir = read_flags(argv).get("workdir", "")
    if not is_named(workdir):
        return list(argv)
    if subcommand in _WRITING:
        raise app.UsageError(
            f"{subcommand} writes to its workdir, so --workdir must be a folder: caption-jax export "
            f"--workdir={workdir} --to=folder --out=FOLDER downloads the model"
        )
    return [f"--workdir={locate_model(workdir)}", *remove_flag(argv, "workdir")]


def check(subcommand: str, workdir: str, *, writes: bool = True) -> None:
    """Checks that a workdir can be used, without creating it. Does nothing for a bucket.

    Args:
        subcommand: name of the subcommand.
        workdir: the workdir.
        writes: False if the subcommand does not write files, as in a dry run.

    Raises:
        WorkdirError: the workdir is a file, or cannot be read or written.
    """
    if is_on_bucket(workdir):
        return
    parent = os.path.abspath(workdir)
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise WorkdirError(f"--workdir={workdir}: {parent} is not a folder; set --workdir to a folder")
    if not os.access(parent, os.R_OK | os.X_OK):
        raise WorkdirError(f"--workdir={workdir}: no permission to read {parent}")
    if writes and subcommand in _WRITING and not os.access(parent, os.W_OK):
        raise WorkdirError(f"--workdir={workdir}: no permission to write to {parent}; set --workdir to another folder")


def check_default(workdir: str, root: str) -> None:
    """Checks that a default workdir does not hold a run on other data, which would otherwise be resumed.

    Args:
        workdir: a workdir that the user has not chosen.
        root: `config.data.root` of the new run.

    Raises:
        ConfigError: the workdir holds a run on another folder.
    """
    if not _is_run(workdir):
        return
    from caption_jax.runs.workdir import read_spec  # imports JAX

    stored = read_spec(workdir).data.root
    if os.path.abspath(stored) != os.path.abspath(root):
        raise ConfigError(
            f"{workdir} holds a run with config.data.root={stored!r}, not {root!r}: set --workdir to another folder"
        )


def _check_required(subcommand: str, workdir: str, config: str) -> None:
    if subcommand == "train" and not config:
        hint = f", or workdir:{workdir} for that of its run" if _is_run(workdir) else ""
        names = ", ".join(list_configs())
        raise app.UsageError(f"train requires --config=NAME: the path of a config file, or one of {names}{hint}")
    if subcommand == "prepare" and not config:
        raise app.UsageError("prepare requires --config=NAME, which selects the data and the size of the images")
    if workdir or subcommand in WITHOUT_WORKDIR:
        return
    if subcommand == "plan" and not config:
        raise app.UsageError("plan requires --config=NAME, or --workdir=FOLDER with the folder of a run")
    if subcommand not in _WITH_DEFAULT or ":" in config:  # the config depends on its argument, not only on its name
        runs = [os.path.dirname(path) for path in sorted(glob.glob(os.path.join(_RUNS, "*", "config.json")))]
        examples = f", such as {', '.join(runs[:5])}" if runs else ""
        if subcommand == "soup":
            raise app.UsageError("soup requires --workdir=FOLDER, a new folder for the average")
        raise app.UsageError(f"{subcommand} requires --workdir=FOLDER, the folder of a run{examples}")


def _is_run(workdir: str) -> bool:
    return not is_on_bucket(workdir) and os.path.isfile(os.path.join(workdir, "config.json"))
