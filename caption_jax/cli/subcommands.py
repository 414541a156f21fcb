"""The subcommands of the command line: their arguments, flags and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Subcommand:
    """A subcommand, which `run` in `caption_jax/cli/<name>.py` executes.

    Attributes:
        name: name on the command line.
        summary: one line for the list of subcommands.
        usage: required flags and arguments, as in `--workdir=FOLDER IMAGE...`.
        flags: names of the flags that it uses, in the order of the help page.
        examples: arguments of example commands.
        takes_arguments: whether it takes arguments that are not flags.
        notes: text of the help page, below the summary.
        descriptions: descriptions of flags whose meaning depends on the subcommand, by flag.
    """

    name: str
    summary: str
    usage: str
    flags: tuple[str, ...]
    examples: tuple[str, ...]
    takes_arguments: bool = False
    notes: str = ""
    descriptions: Mapping[str, str] = field(default_factory=dict)


_PROCESSES = ("distributed", "heartbeat")
EPOCH_FLAGS = (  # of `plan`, and attributes of `EpochRequest`
    *("pairs", "step_seconds", "host_images_per_second", "host_cores", "link_bandwidth"),
    *("checkpoint_bandwidth", "price_per_chip_hour"),
)
SERVING_FLAGS = (
    *("image_folder", "host", "port", "batch_sizes", "beams", "max_wait_ms"),
    *("request_timeout", "token_file", "max_queue", "max_images", "max_request_mb"),
)
_BULK_INDEX = ("images_per_part", "checkpoint", "config")
_BULK = ("weights", *_BULK_INDEX)
_BULK_NOTES = (
    "IMAGES are image files, tar, Parquet, Arrow or ArrayRecord shards, patterns, folders or prefixes of buckets. "
    "Writes a Parquet file per shard; the same command continues after an interruption. Uses the Ray cluster in "
    "RAY_ADDRESS, or starts Ray on this machine. Requires the `ray` extra."
)
_BULK_OUT = "Folder or bucket for the Parquet files: a new one, or one to continue."
_SPLIT_CONTEXT = "`retrieved` for captions of similar images (the default), `none`, or `shuffled`."

_FLAG_SUBCOMMANDS = (
    Subcommand(
        "train",
        "train a model, or resume an interrupted run",
        "--config=NAME [--workdir=FOLDER]",
        ("config", "workdir", "checkpoint", "max_steps_this_run", "allow_data_change", "dry_run", *_PROCESSES),
        (
            "train --config=shapes",
            "train --config=folder --config.data.root=photographs --workdir=runs/folder",
            "train --config=folder --config.data.root=photographs --dry_run",
        ),
        notes="The same command resumes an interrupted run. The default workdir is runs/NAME.",
        descriptions={
            "config": "Name of a config (see `configs`) or path of a config file.",
            "checkpoint": "Step of the checkpoint to resume from, instead of the newest intact one.",
        },
    ),
    Subcommand(
        "evaluate",
        "score a trained model on a split or on another dataset",
        "--workdir=FOLDER",
        ("workdir", "split", "data", "images", "context", "checkpoint", "weights", "config", *_PROCESSES),
        (
            "evaluate --workdir=runs/folder --split=test",
            "evaluate --workdir=runs/folder --data=more_photographs",
            "evaluate --workdir=runs/folder --config.decode.method=beam",
        ),
        notes="Prints the scores, and writes them to eval_<split>.json and report_<split>.html in the workdir.",
        descriptions={"context": _SPLIT_CONTEXT},
    ),
    Subcommand(
        "tune",
        "find the best settings of beam search on a split",
        "--workdir=FOLDER",
        ("workdir", "split", "context", "config", *_PROCESSES),
        ("tune --workdir=runs/folder --config.decode.num_beams=5",),
        notes="Prints the score of each setting, and the flags of the best one.",
        descriptions={"context": _SPLIT_CONTEXT},
    ),
    Subcommand(
        "soup",
        "average the weights of trained models",
        "--workdir=FOLDER MODEL MODEL...",
        ("workdir", "recipe", "split", "context", "config", *_PROCESSES),
        (
            "soup --workdir=runs/soup runs/seed0 runs/seed1 runs/seed2",
            "soup --workdir=runs/soup runs/folder@all --recipe=uniform",
        ),
        takes_arguments=True,
        notes="MODEL is the workdir of a run, optionally followed by @STEP, @last or @all (all saved weights). The "
        "workdir is a new folder, in which the average is written as a run.",
        descriptions={
            "workdir": "New folder or bucket for the average.",
            "config": "Name of a config (see `configs`) or path of a config file; by default, that of the first model.",
            "split": "Split that judges the models.",
            "context": _SPLIT_CONTEXT,
        },
    ),
    Subcommand(
        "caption",
        "caption image files",
        "[--workdir=FOLDER] IMAGE...",
        ("workdir", "format", "context", "checkpoint", "weights", "config", *_PROCESSES),
        (
            "caption photo.jpg",
            "caption --workdir=runs/folder photo.jpg",
            "caption --workdir=runs/folder folder/ 'more/*.png' --format=jsonl",
        ),
        takes_arguments=True,
        notes="IMAGE is a file, a pattern or a folder. Prints one line per image: the path, a tab and the caption. "
        "The default is a small demo model.",
        descriptions={
            "context": "A text to use as context for the images, such as the title of a page; may be repeated."
        },
    ),
    Subcommand(
        "caption-many",
        "caption collections of images with Ray",
        "[--workdir=FOLDER] --out=FOLDER IMAGES...",
        ("workdir", "out", "workers", "images_per_batch", "vectors", "alternatives", *_BULK),
        (
            "caption-many --workdir=runs/folder --out=captions folder/",
            "caption-many --out=captions 'shards/{000..039}.tar' --workers=2",
        ),
        takes_arguments=True,
        notes=_BULK_NOTES,
        descriptions={"out": _BULK_OUT},
    ),
    Subcommand(
        "serve",
        "caption images and search an index over HTTP",
        "[--workdir=FOLDER]",
        ("workdir", "index", *SERVING_FLAGS, "checkpoint", "weights", "config"),
        (
            "serve --workdir=runs/folder",
            "serve --workdir=runs/search --index=runs/search/index --image_folder=photos",
            "serve --workdir=runs/folder --host=0.0.0.0 --token_file=token.txt",
        ),
        notes="Compiles its programs, then answers POST /v1/captions until a signal stops it, and /v1/embeddings and "
        "/v1/search if the model has a joint embedding. Requires the `serve` extra.",
        descriptions={"index": "Folder of an index to search; none by default."},
    ),
    Subcommand(
        "index",
        "add images to a search index",
        "--workdir=FOLDER IMAGE...",
        ("workdir", "index", "split", "captions", "missing", "checkpoint", "config", *_PROCESSES),
        (
            "index --workdir=runs/search folder/ 'more/*.jpg'",
            "index --workdir=runs/search --split=train --captions=none",
        ),
        takes_arguments=True,
        notes="Indexes files, patterns and folders, a folder that caption-many has written with --vectors, or, with "
        "--split, the images of a split. Images in the index are read again only if their file has changed.",
    ),
    Subcommand(
        "index-many",
        "add collections of images to a search index with Ray",
        "--workdir=FOLDER --out=FOLDER IMAGES...",
        ("workdir", "index", "out", "workers", "images_per_batch", "captions", *_BULK_INDEX),
        ("index-many --workdir=runs/search --out=vectors 'shards/*.tar'",),
        takes_arguments=True,
        notes=_BULK_NOTES,
        descriptions={"out": _BULK_OUT},
    ),
    Subcommand(
        "search",
        "search an index by text or by image",
        "--workdir=FOLDER QUERY",
        ("workdir", "index", "query", "top", "format", "search", "checkpoint", "config", *_PROCESSES),
        (
            "search --workdir=runs/search 'a dog on the beach'",
            "search --workdir=runs/search photo.jpg --top=5 --format=jsonl",
        ),
        takes_arguments=True,
        notes="QUERY is a text or the path of an image. Prints the rank, score, path and caption of each result.",
    ),
    Subcommand(
        "neighbours",
        "find the indexed images nearest to the images of a split",
        "--workdir=FOLDER",
        ("workdir", "index", "split", "top", "checkpoint", "config", *_PROCESSES),
        ("neighbours --workdir=runs/search --split=train",),
        notes="Writes the neighbours to the folder of the index, for training with context.",
    ),
    Subcommand(
        "export",
        "write a model in a format for other programs",
        "--workdir=FOLDER --to=FORMAT",
        ("workdir", "to", "out", "push", "checkpoint", "weights", "config"),
        (
            "export --workdir=runs/folder --to=folder",
            "export --workdir=runs/folder --to=folder --weights=int8",
            "export --workdir=runs/folder --to=torch --out=shared/my_model",
            "export --workdir=runs/folder --to=folder --push=owner/name",
            "export --workdir=runs/folder --to=stablehlo",
            "export --workdir=runs/folder --to=onnx",
        ),
        notes="The formats are folder, which caption_jax.load reads, and three that need none of this project: torch, "
        "stablehlo (JAX on CPUs, GPUs and TPUs) and onnx (ONNX Runtime), each with a script that captions images. All "
        "have a model card. Prints the path of the new folder.",
    ),
    Subcommand(
        "prepare",
        "write a dataset as shards of resized images, which training reads fast",
        "--config=NAME --out=FOLDER",
        ("config", "out", "image_format", "jpeg_quality"),
        (
            "prepare --config=folder --config.data.root=photographs --out=prepared",
            "prepare --config=coco --config.data.root=COCO --out=prepared",
        ),
        notes="Writes all splits, with images of config.data.image_size pixels, in config.data.workers processes. The "
        "same command continues an interrupted preparation. `train` reads the shards with "
        "--config.data.source=prepared --config.data.root=FOLDER.",
        descriptions={
            "config": "Name of a config (see `configs`) or path of a config file.",
            "out": "Folder for the shards.",
        },
    ),
    Subcommand(
        "plan",
        "estimate memory and speed on devices that need not be available",
        "--config=NAME --topology=DEVICES [--workdir=FOLDER]",
        (
            *("topology", "config", "workdir", "programs", "phase", "images_per_chip", "vocabulary", "compilations"),
            *EPOCH_FLAGS,
        ),
        (
            "plan --config=coco --topology=v5e:16x16 --images_per_chip=256",
            "plan --config=coco --topology=v5e:4x4 --pairs=3000000 --host_cores=448",
            "plan --workdir=runs/folder --topology=cpu:8",
        ),
        notes="Compiles the programs of a config, and prints their memory, FLOPs and communication; with --pairs, also "
        "the time and cost of an epoch. The default workdir is runs/NAME.",
    ),
)

_OTHER_SUBCOMMANDS = (
    Subcommand(
        "score",
        "score captions of any system against references",
        "REFERENCES RESULTS [OTHER_RESULTS]",
        (),
        (
            "score annotations/captions_val2014.json results.json",
            "score dataset_coco.json ours.json baseline.json --split=test --json=comparison.json",
        ),
        takes_arguments=True,
    ),
    Subcommand(
        "configs",
        "list the configs that --config accepts by name",
        "[NAME]",
        (),
        ("configs", "configs folder"),
        takes_arguments=True,
        notes="With a name, prints the description of the config and the path of its file.",
    ),
)

MODES = tuple(subcommand.name for subcommand in _FLAG_SUBCOMMANDS)  # values of --mode
SUBCOMMANDS = {subcommand.name: subcommand for subcommand in (*_FLAG_SUBCOMMANDS, *_OTHER_SUBCOMMANDS)}


def find_users(flag: str) -> list[str]:
    """Returns the names of the subcommands that use a flag, an empty list if all do."""
    return [subcommand.name for subcommand in SUBCOMMANDS.values() if flag in subcommand.flags]
