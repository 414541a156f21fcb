"""The command line flags of all modes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import config_flags

if TYPE_CHECKING:
    from caption_jax.specs import RunSpec
    from caption_jax.specs.extensions import IfUnavailable

MODES = ("train", "evaluate", "tune", "caption", "index", "search", "neighbours", "plan")

flags.disclaim_key_flags()


def define() -> None:
    """Defines the flags. Must be called once per process."""
    config_flags.DEFINE_config_file("config", None, "Config file of the run, or the name of one in configs/.")
    flags.DEFINE_string("workdir", None, "Folder or bucket for checkpoints, logs and results of the run.")
    flags.DEFINE_enum(
        "mode",
        "train",
        MODES,
        "Train or resume a run, evaluate it on a split, tune its beam search, caption images, index images, search an "
        "index, find the neighbours of a split's images, or plan a run for other devices.",
    )
    flags.DEFINE_boolean(
        "dry_run", False, "train: read the data, print the resolved config and run one step, without writing anything."
    )
    flags.DEFINE_boolean("quiet", False, "Print only warnings, errors and results: no progress.")
    flags.DEFINE_boolean("verbose", False, "Also print all messages of libraries, and the metrics of each log step.")
    _define_for_splits()
    _define_for_captions_and_search()
    _define_for_plan()
    flags.mark_flags_as_required(["config", "workdir"])


def _define_for_splits() -> None:
    flags.DEFINE_string("split", "val", "evaluate, tune, index, neighbours: split of the images.")
    flags.DEFINE_string(
        "data",
        None,
        "evaluate: folder of another dataset, with images and a caption file such as captions.csv. All of its images "
        "are evaluated unless --split is set.",
    )
    flags.DEFINE_enum("images", "real", ["real", "blank", "shuffled"], "evaluate: images to feed to the model.")
    flags.DEFINE_multi_string(
        "context",
        None,
        "caption: a text to use as context for the images, such as the title of a page; may be repeated up to the "
        "limit of the model. evaluate, tune: `retrieved` for captions of similar images (the default), `none`, or "
        "`shuffled` for the context of another image.",
    )


def _define_for_captions_and_search() -> None:
    flags.DEFINE_enum("format", "text", ["text", "jsonl"], "caption, search: tab-separated text or JSON lines.")
    flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "caption, index, search, neighbours: checkpoint to use.")
    flags.DEFINE_string("index", None, "Folder of the index; `index` in the workdir by default.")
    flags.DEFINE_enum("captions", "generated", ["generated", "none"], "index: captions to store with the vectors.")
    flags.DEFINE_enum("missing", "keep", ["keep", "drop"], "index: what to do with images whose files no longer exist.")
    flags.DEFINE_string("query", None, "search: text to search for, or path of an image.")
    flags.DEFINE_integer("top", 10, "search, neighbours: number of results.", lower_bound=1)
    flags.DEFINE_enum("search", "exact", ["exact", "approx"], "search: approx is faster on TPUs, with lower recall.")


def _define_for_plan() -> None:
    flags.DEFINE_string("topology", None, "plan: devices to plan for, such as v5e:16x16, v6e:4x4 or cpu:8.")
    flags.DEFINE_list("programs", ["train", "decode"], "plan: programs to compile, any of train, decode, encoder.")
    flags.DEFINE_string("phase", "last", "plan: unfreezing phase; first, last, all, or a step within the phase.")
    flags.DEFINE_integer(
        "images_per_chip", 0, "plan: batch size per chip; 0 for the batch size in the config.", lower_bound=0
    )
    flags.DEFINE_integer(
        "vocabulary", 0, "plan: vocabulary size; 0 for that of the workdir or the tokenizer.", lower_bound=0
    )
    flags.DEFINE_integer(
        "compilations", 3, "plan: maximum compilations to find the largest batch size; 0 to disable.", lower_bound=0
    )


def read_flags(argv: list[str]) -> dict[str, str]:
    """Returns the values of the flags in `argv` by name, before absl parses them."""
    values = {}
    for argument, next_argument in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-"):
            values[name] = value if equals else next_argument  # --name=VALUE or --name VALUE
    return values


def replace_flag(argv: list[str], name: str, value: str) -> list[str]:
    """Returns `argv` with the value of a flag replaced, in either form: --name=VALUE or --name VALUE."""
    result = list(argv)
    for index, argument in enumerate(argv):
        argument_name, equals, _ = argument.lstrip("-").partition("=")
        if argument.startswith("-") and argument_name == name:
            if equals:
                result[index] = f"--{name}={value}"
            elif index + 1 < len(argv):
                result[index + 1] = value
    return result


def spec_from_flags(options: flags.FlagValues, if_unavailable: IfUnavailable = "raise") -> RunSpec:
    """Converts the config to a validated spec.

    Args:
        options: all flags.
        if_unavailable: "keep" in modes that use neither objectives nor evaluators, which may then be missing.
    """
    from caption_jax.specs import RunSpec

    return RunSpec.from_config(options.config, if_unavailable)


def get_context_kind(options: flags.FlagValues) -> str:
    """Returns the value of `--context` in modes that caption a split.

    The default is "", which stands for the same kind of context as in training.
    """
    if len(options.context or ()) > 1:
        raise app.UsageError(f"{options.mode} takes a single --context, got {options.context}")
    return options.context[0] if options.context else ""
