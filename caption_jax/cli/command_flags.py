"""The command line flags of all modes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags

from caption_jax.cli.subcommands import MODES

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from caption_jax.specs import RunSpec
    from caption_jax.specs.extensions import Loading

# Keys of `caption_jax.export.exporter.WRITERS`, which is slow to import.
EXPORT_FORMATS = ("folder", "torch", "stablehlo", "onnx")
WEIGHTS = ("stored", "float32", "bfloat16", "int8")  # `caption_jax.parameters.stored_dtypes.CHOICES`, likewise

flags.disclaim_key_flags()


def define(values: flags.FlagValues = flags.FLAGS, config: ConfigDict | None = None, argv: Sequence[str] = ()) -> None:
    """Defines the flags. Must be called once per `values`.

    Args:
        values: the flags to add to.
        config: the config of the run, whose keys become flags such as `--config.data.batch_size`.
        argv: arguments of the command line, without `--config`.

    Raises:
        UnknownKeyError: a flag in `argv` sets a key that the config does not have.
    """
    if config is None:
        flags.DEFINE_string(
            "config",
            None,
            "Name of a config (see `configs`) or path of a config file; by default, the config stored in the workdir.",
            values,
        )
    else:
        from caption_jax.cli.config_flag import define_config

        define_config(config, argv, values)
    flags.DEFINE_string("workdir", None, "Folder or bucket of the run: checkpoints, logs and results.", values)
    flags.DEFINE_enum("mode", "train", MODES, "The subcommand, if it is not the first argument.", values)
    flags.DEFINE_boolean(
        "dry_run", False, "Read the data, print the resolved config and run one step, without writing files.", values
    )
    flags.DEFINE_boolean(
        "allow_data_change", False, "Resume a run although its images or captions have changed.", values
    )
    flags.DEFINE_integer(
        "max_steps_this_run",
        0,
        "Number of steps after which this process saves and stops, for job queues; 0 for no limit.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "on", "off"],
        "Run with other processes: those that are detected, required ones, or none.",
        values,
    )
    flags.DEFINE_float(
        "heartbeat",
        60.0,
        "Seconds without any message after which another process is taken for lost, and this one ends.",
        lower_bound=1.0,
        flag_values=values,
    )
    flags.DEFINE_boolean("quiet", False, "Print only warnings, errors and results: no progress.", values)
    flags.DEFINE_boolean("verbose", False, "Also print messages of libraries and the metrics of each log step.", values)
    _define_for_splits(values)
    _define_for_captions_and_search(values)
    _define_for_export(values)
    _define_for_prepare(values)
    _define_for_plan(values)
    _define_for_serve(values)
    _define_for_bulk(values)


def _define_for_splits(values: flags.FlagValues) -> None:
    flags.DEFINE_string("split", "val", "Split of the images.", values)
    flags.DEFINE_enum(
        "recipe", "greedy", ["greedy", "uniform"], "Average the models that raise the score, or all of them.", values
    )
    flags.DEFINE_string(
        "data",
        None,
        "Folder of another dataset, with images and a caption file such as captions.csv. All of its images are "
        "evaluated unless --split is set.",
        values,
    )
    flags.DEFINE_enum("images", "real", ["real", "blank", "shuffled"], "Images to feed to the model.", values)
    flags.DEFINE_multi_string(
        "context",
        None,
        "For caption, a text to use as context for the images, such as the title of a page; may be repeated. "
        "Otherwise `retrieved` for captions of similar images (the default), `none`, or `shuffled`.",
        values,
    )


def _define_for_captions_and_search(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("format", "text", ["text", "jsonl"], "Tab-separated text, or JSON lines.", values)
    flags.DEFINE_string("checkpoint", "best", "Checkpoint to use: best, last, or the step of a saved one.", values)
    flags.register_validator(
        "checkpoint",
        lambda value: value in ("best", "last") or (value.isascii() and value.isdigit()),
        "must be best, last or a step",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "weights", "stored", WEIGHTS, "Dtype of the weights: that of the file, or the one to convert them to.", values
    )
    flags.DEFINE_string("index", None, "Folder of the index; `index` in the workdir by default.", values)
    flags.DEFINE_enum("captions", "generated", ["generated", "none"], "Captions to store with the vectors.", values)
    flags.DEFINE_enum("missing", "keep", ["keep", "drop"], "What to do with images whose files are gone.", values)
    flags.DEFINE_string("query", None, "Text or path of an image, if it is not an argument.", values)
    flags.DEFINE_integer("top", 10, "Number of results.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("search", "exact", ["exact", "approx"], "approx is faster on TPUs, with lower recall.", values)


def _define_for_export(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "to",
        None,
        EXPORT_FORMATS,
        "Format of the exported model: for this project, PyTorch, JAX alone or ONNX Runtime.",
        values,
    )
    flags.DEFINE_string(
        "out", None, "New folder for the result; of `export`, `export/FORMAT` in the workdir by default.", values
    )
    flags.DEFINE_string("push", None, "Upload the exported folder to this model, as in owner/name, on the Hub.", values)


def _define_for_prepare(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("image_format", "raw", ["raw", "jpeg"], "How to store images: as pixels or as JPEGs.", values)
    flags.DEFINE_integer("jpeg_quality", 95, "Quality of JPEGs.", 1, 100, flag_values=values)


def _define_for_plan(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", None, "Devices to plan for, such as v5e:16x16, v6e-8, h100:8 or cpu:8.", values)
    flags.DEFINE_list("programs", ["train", "decode"], "Programs to compile: train, evaluate, decode, encoder.", values)
    flags.DEFINE_string("phase", "last", "Unfreezing phase: first, last, all, or a step within the phase.", values)
    counts = {
        "images_per_chip": (0, "Batch size per chip; 0 for that of the config."),
        "vocabulary": (0, "Vocabulary size; 0 for that of the workdir or the tokenizer."),
        "compilations": (3, "Maximum compilations to find the largest batch size; 0 to disable."),
        "pairs": (0, "Image-caption pairs of an epoch, which is then estimated."),
        "host_cores": (0, "Cores of all hosts together; 0 for as many as the chips need."),
    }
    for name, (default, description) in counts.items():
        flags.DEFINE_integer(name, default, description, lower_bound=0, flag_values=values)
    figures = {
        "step_seconds": (0.0, 0.0, "Measured time of a training step; 0 to estimate it."),
        "host_images_per_second": (500.0, 1e-3, "Images that a core decodes per second."),
        "link_bandwidth": (0.0, 0.0, "Bytes that a chip sends per second; 0 for the published value."),
        "checkpoint_bandwidth": (25e6, 1.0, "Bytes written per second."),
        "price_per_chip_hour": (0.0, 0.0, "Price of a chip per hour."),
    }
    for name, (default, lowest, description) in figures.items():
        flags.DEFINE_float(name, default, description, lower_bound=lowest, flag_values=values)


def _define_for_serve(values: flags.FlagValues) -> None:
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all addresses of this host.", values)
    flags.DEFINE_integer("port", 8000, "Port to listen on; 0 for a free one.", 0, 65535, flag_values=values)
    flags.DEFINE_list("batch_sizes", ["1", "4", "16"], "Sizes of batches, compiled at the start.", values)
    flags.DEFINE_list("beams", [], "Numbers of beams to offer besides the decoding of the config.", values)
    flags.DEFINE_float(
        "max_wait_ms", 10.0, "Milliseconds that an image waits for others.", 0.0, 1e5, flag_values=values
    )
    flags.DEFINE_float("request_timeout", 30.0, "Seconds after which a request fails.", 0.1, flag_values=values)
    flags.DEFINE_string("image_folder", None, "Folder of the indexed images, of which thumbnails are served.", values)
    flags.DEFINE_string("token_file", None, "File with the bearer token that requests must have.", values)
    counts = {
        "max_queue": (64, "Number of accepted images above which requests are refused."),
        "max_images": (16, "Number of images per request."),
        "max_request_mb": (32, "Size of a request in MB."),
    }
    for name, (default, description) in counts.items():
        flags.DEFINE_integer(name, default, description, lower_bound=1, flag_values=values)


def _define_for_bulk(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("vectors", False, "Also store the vector of each image, for an index.", values)
    counts = {
        "workers": (0, 0, "Number of workers; 0 for one per GPU, TPU host or, without either, per machine."),
        "alternatives": (0, 0, "Number of captions to store besides the best, of the other beams or samples."),
        "images_per_batch": (16, 1, "Maximum number of images per batch."),
        "images_per_part": (1000, 1, "Number of image files per Parquet file; a shard is always one file."),
    }
    for name, (default, smallest, description) in counts.items():
        flags.DEFINE_integer(name, default, description, lower_bound=smallest, flag_values=values)


def read_flags(argv: Sequence[str]) -> dict[str, str]:
    """Returns the values of the flags in `argv` by name, before absl parses them."""
    values = {}
    for argument, next_argument in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        if argument == "--":
            break
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-"):
            values[name] = value if equals else next_argument  # --name=VALUE or --name VALUE
    return values


def find_first_argument(argv: Sequence[str]) -> str:
    """Returns the first argument that is neither a flag nor the value of one, or "" if there is none."""
    known = flags.FlagValues()
    define(known)
    is_value = False
    for position, argument in enumerate(argv):
        if argument == "--":
            return next(iter(argv[position + 1 :]), "")
        if argument.startswith("-"):
            name, equals, _ = argument.lstrip("-").partition("=")
            is_boolean = name.removeprefix("no") in known and known[name.removeprefix("no")].boolean
            is_value = not equals and not is_boolean and not (name in known and known[name].boolean)
        elif is_value:
            is_value = False
        else:
            return argument
    return ""


def remove_flag(argv: Sequence[str], name: str) -> list[str]:
    """Returns `argv` without a flag and its value, in either form: --name=VALUE or --name VALUE."""
    result: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            return [*result, argument, *arguments]
        argument_name, equals, _ = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or argument_name != name:
            result.append(argument)
        elif not equals:
            next(arguments, None)
    return result


def spec_from_flags(options: flags.FlagValues, loading: Loading = "import") -> RunSpec:
    """Converts the config to a validated spec.

    Args:
        options: all flags.
        loading: "defer" in modes that use neither objectives nor evaluators, which are then not imported.
    """
    from caption_jax.specs import RunSpec

    return RunSpec.from_config(options.config, loading)


def get_context_kind(options: flags.FlagValues) -> str:
    """Returns the value of `--context` in modes that caption a split.

    The default is "", which stands for the same kind of context as in training.
    """
    if len(options.context or ()) > 1:
        raise app.UsageError(f"{options.mode} takes a single --context, got {options.context}")
    return options.context[0] if options.context else ""
