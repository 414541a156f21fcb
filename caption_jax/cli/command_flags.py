"""All flags of the command line, whatever the mode."""

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
    """Defines the flags; a process does it once."""
    config_flags.DEFINE_config_file("config", None, "Config file of the run, such as configs/coco.py.")
    flags.DEFINE_string("workdir", None, "Folder or bucket of the run's checkpoints, logs and results.")
    flags.DEFINE_enum(
        "mode",
        "train",
        MODES,
        "What to do: train a run or resume it, evaluate it on a split, tune its beam search, caption images, index "
        "images, search an index, store the neighbours of a split's images, plan a run for devices that are not there.",
    )
    flags.DEFINE_boolean(
        "dry_run", False, "train: read the data, print the resolved config, run one step, write nothing."
    )
    _define_for_splits()
    _define_for_captions_and_search()
    _define_for_plan()
    flags.mark_flags_as_required(["config", "workdir"])


def _define_for_splits() -> None:
    flags.DEFINE_string("split", "val", "evaluate, tune, index, neighbours: split to take the images of.")
    flags.DEFINE_string(
        "data",
        None,
        "evaluate: another data set than the run's own, a folder of images and a caption file such as captions.csv; "
        "all of its images, unless --split names a split that it has.",
    )
    flags.DEFINE_enum("images", "real", ["real", "blank", "shuffled"], "evaluate: images the model sees.")
    flags.DEFINE_multi_string(
        "context",
        None,
        "caption: a text that belongs to the images, such as a page's title; as often as the model takes texts. "
        "evaluate, tune: captions of similar images (retrieved, the default), none, or those of another image "
        "(shuffled).",
    )


def _define_for_captions_and_search() -> None:
    flags.DEFINE_enum("format", "text", ["text", "jsonl"], "caption, search: lines with tabs, or of JSON.")
    flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "caption, index, search, neighbours: which one.")
    flags.DEFINE_string("index", None, "Folder of the index; by default `index` in the workdir.")
    flags.DEFINE_enum("captions", "generated", ["generated", "none"], "index: captions stored beside vectors.")
    flags.DEFINE_enum("missing", "keep", ["keep", "drop"], "index: what happens to images whose files are gone.")
    flags.DEFINE_string("query", None, "search: words, or the path of an image.")
    flags.DEFINE_integer("top", 10, "search, neighbours: how many images to find.", lower_bound=1)
    flags.DEFINE_enum("search", "exact", ["exact", "approx"], "search: approx is faster on TPUs, misses some.")


def _define_for_plan() -> None:
    flags.DEFINE_string("topology", None, "plan: devices to plan for, such as v5e:16x16, v6e:4x4 or cpu:8.")
    flags.DEFINE_list("programs", ["train", "decode"], "plan: some of train, decode, encoder.")
    flags.DEFINE_string("phase", "last", "plan: of unfreezing: first, last, all, or a step in it.")
    flags.DEFINE_integer("images_per_chip", 0, "plan: 0 for the config's batches.", lower_bound=0)
    flags.DEFINE_integer("vocabulary", 0, "plan: tokens; 0 for what the workdir says, or all.", lower_bound=0)
    flags.DEFINE_integer(
        "compilations", 3, "plan: most that the search for the largest batch takes; 0 for no search.", lower_bound=0
    )


def typed(argv: list[str]) -> dict[str, str]:
    """Flags by name as they were typed, before absl reads them."""
    found = {}
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-"):
            found[name] = value if equals else following  # both --workdir=W and --workdir W
    return found


def spec_of(options: flags.FlagValues, if_unavailable: IfUnavailable = "raise") -> RunSpec:
    """The config, validated; the one place where it becomes a spec.

    Args:
        options: all flags.
        if_unavailable: "keep" for a mode that needs neither objectives nor evaluators, whether they can be loaded or
            not.
    """
    from caption_jax.specs import RunSpec

    return RunSpec.from_config(options.config, if_unavailable)


def kind_of_context(options: flags.FlagValues) -> str:
    """What `--context` names where whole splits are captioned; "" for what the run is trained with."""
    if len(options.context or ()) > 1:
        raise app.UsageError(f"{options.mode} with one kind of context, not {options.context}")
    return options.context[0] if options.context else ""
