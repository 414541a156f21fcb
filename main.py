"""Train, evaluate and use image captioners.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --mode=evaluate --workdir=/tmp/shapes --split=test
    python main.py --mode=tune --workdir=/tmp/shapes --split=val
    python main.py --mode=caption --workdir=/tmp/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=index --workdir=/tmp/shapes photo.jpg folder/ 'more/*.png'
    python main.py --mode=search --workdir=/tmp/shapes --query='a dog on the beach'
    python main.py --mode=neighbours --workdir=/tmp/shapes --split=train
    python main.py --mode=plan --config=configs/coco.py --workdir=/tmp/coco --topology=v5e:16x16

Keys of the config are overridden as `--config.data.batch_size=64`. All modes but `train` take the config that the
workdir holds, unless another one is named.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import config_flags

from caption_jax.runtime.process import end_at_once, restart_with_huge_pages, set_up_process

if TYPE_CHECKING:
    from caption_jax.evaluation.assessment import Assessment
    from caption_jax.specs import RunSpec

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file of the run, such as configs/coco.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run's checkpoints, logs and results.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "tune", "caption", "index", "search", "neighbours", "plan"], "What to do."
)
_SPLIT = flags.DEFINE_string("split", "val", "evaluate, tune, index, neighbours: split to take the images of.")
_IMAGES = flags.DEFINE_enum("images", "real", ["real", "blank", "shuffled"], "evaluate: images the model sees.")
_CONTEXT = flags.DEFINE_multi_string(
    "context",
    None,
    "caption: a text that belongs to the images, such as a page's title; as often as the model takes texts. "
    "evaluate, tune: captions of similar images (retrieved, the default), none, or those of another image (shuffled).",
)
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "jsonl"], "caption, search: lines with tabs, or of JSON.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", ["best", "last"], "caption, index, search, neighbours: which one."
)
_INDEX = flags.DEFINE_string("index", None, "Folder of the index; by default `index` in the workdir.")
_CAPTIONS = flags.DEFINE_enum("captions", "generated", ["generated", "none"], "index: captions stored beside vectors.")
_MISSING = flags.DEFINE_enum("missing", "keep", ["keep", "drop"], "index: what happens to images whose files are gone.")
_QUERY = flags.DEFINE_string("query", None, "search: words, or the path of an image.")
_TOP = flags.DEFINE_integer("top", 10, "search, neighbours: how many images to find.", lower_bound=1)
_SEARCH = flags.DEFINE_enum("search", "exact", ["exact", "approx"], "search: approx is faster on TPUs, misses some.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "plan: devices to plan for, such as v5e:16x16, v6e:4x4 or cpu:8.")
_PROGRAMS = flags.DEFINE_list("programs", ["train", "decode"], "plan: some of train, decode, encoder.")
_PHASE = flags.DEFINE_string("phase", "last", "plan: of unfreezing: first, last, all, or a step in it.")
_IMAGES_PER_CHIP = flags.DEFINE_integer("images_per_chip", 0, "plan: 0 for the config's batches.", lower_bound=0)
_VOCABULARY = flags.DEFINE_integer("vocabulary", 0, "plan: tokens; 0 for what the workdir says, or all.", lower_bound=0)
_COMPILATIONS = flags.DEFINE_integer(
    "compilations", 3, "plan: most that the search for the largest batch takes; 0 for no search.", lower_bound=0
)


def command(argv: list[str]) -> int:
    """`main` for a command line: a `UserError` is printed as one line; an error of the program keeps its traceback."""
    try:
        status = main(argv)
        if _MODE.value in ("caption", "search"):  # short ones, which leave nothing to be written in the background
            end_at_once(__file__, status)
        return status
    except app.UsageError as error:
        print(f"error: {error} (main.py --help lists all flags)", file=sys.stderr)
        return 2
    except Exception as error:  # a library may have raised its own from a UserError
        from caption_jax.errors import message_for_the_user

        message = message_for_the_user(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1


def main(argv: list[str]) -> int:
    """Runs one mode; its result is the process's exit status."""
    if _MODE.value not in ("caption", "index") and len(argv) > 1:
        raise app.UsageError(f"mode {_MODE.value} takes no arguments, but got {argv[1:]}")
    _set_up_platform()
    try:
        status = _MODES[_MODE.value](argv[1:])
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if _MODE.value == "train":
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing it would fail once more
        return 141  # who read our lines (`| head`) has seen enough: what a shell says of a closed pipe


def _spec() -> RunSpec:
    """The config, validated; the one place where it becomes a spec."""
    from caption_jax.specs import RunSpec

    return RunSpec.from_config(_CONFIG.value)


def _train(_: list[str]) -> int:
    from caption_jax.training.loop import train_and_evaluate

    _print(train_and_evaluate(_spec(), _WORKDIR.value))
    return 0


def _evaluate(_: list[str]) -> int:
    from caption_jax.evaluation.final_evaluation import evaluate_split
    from caption_jax.files import absolute
    from caption_jax.runs.experiment import open_experiment

    experiment = open_experiment(absolute(_WORKDIR.value), _spec())
    _print(evaluate_split(experiment, _SPLIT.value, _IMAGES.value, _kind_of_context()))
    return 0


def _tune(_: list[str]) -> int:
    import jax

    from caption_jax.evaluation.tuning import print_tuning, tune_split
    from caption_jax.files import absolute
    from caption_jax.runs.experiment import open_experiment

    experiment = open_experiment(absolute(_WORKDIR.value), _spec())
    found = tune_split(experiment, _SPLIT.value, _kind_of_context())
    if jax.process_index() == 0:
        print_tuning(found)
    return 0


def _kind_of_context() -> str:
    """What `--context` names where whole splits are captioned; "" for what the run is trained with."""
    if len(_CONTEXT.value or ()) > 1:
        raise app.UsageError(f"{_MODE.value} with one kind of context, not {_CONTEXT.value}")
    return _CONTEXT.value[0] if _CONTEXT.value else ""


def _print(found: Assessment | None) -> None:
    """Prints what an evaluation found, if there was one; of several processes the first does."""
    import jax

    from caption_jax.evaluation.report.terminal import print_evaluation

    if found is not None and jax.process_index() == 0:
        print_evaluation(found)


def _caption(arguments: list[str]) -> int:
    from caption_jax.inference.caption_files import caption_files
    from caption_jax.inference.captioner import load

    captioner = load(_WORKDIR.value, _CHECKPOINT.value, _spec().decode)
    return caption_files(captioner, arguments, _FORMAT.value, _CONTEXT.value or ())


def _index(arguments: list[str]) -> int:
    from caption_jax.retrieval.commands import index_folder, index_images, named_images, split_images

    if arguments and flags.FLAGS["split"].present:
        raise app.UsageError(f"index either files or a split, not both --split={_SPLIT.value} and {arguments}")
    if not arguments and not flags.FLAGS["split"].present:
        raise app.UsageError("index what? Name files and folders, or a split of the data with --split")
    return index_images(
        _WORKDIR.value,
        index_folder(_WORKDIR.value, _INDEX.value),
        named_images(arguments) if arguments else split_images(_spec().data, _SPLIT.value),
        checkpoint=_CHECKPOINT.value,
        decode=_spec().decode,
        captions=_CAPTIONS.value,
        missing=_MISSING.value,
    )


def _search(_: list[str]) -> int:
    from caption_jax.retrieval.commands import index_folder, search_images

    if not (_QUERY.value or "").strip():
        raise app.UsageError("search for what? Give words or the path of an image with --query")
    folder = index_folder(_WORKDIR.value, _INDEX.value)
    return search_images(
        _WORKDIR.value,
        folder,
        _QUERY.value,
        checkpoint=_CHECKPOINT.value,
        top=_TOP.value,
        method=_SEARCH.value,
        form=_FORMAT.value,
    )


def _neighbours(_: list[str]) -> int:
    from caption_jax.retrieval.commands import index_folder, split_images, store_neighbours

    return store_neighbours(
        _WORKDIR.value,
        index_folder(_WORKDIR.value, _INDEX.value),
        split_images(_spec().data, _SPLIT.value),
        checkpoint=_CHECKPOINT.value,
        count=_TOP.value,
    )


def _plan(_: list[str]) -> int:
    from caption_jax.files import absolute
    from caption_jax.planning.plan import Request, plan
    from caption_jax.planning.table import print_plan

    request = Request(
        _TOPOLOGY.value,
        tuple(_PROGRAMS.value),
        _PHASE.value,
        images=_IMAGES_PER_CHIP.value,
        vocabulary=_VOCABULARY.value,
        compilations=_COMPILATIONS.value,
    )
    print_plan(plan(_spec(), absolute(_WORKDIR.value), request))
    return 0


_MODES = {
    "train": _train,
    "evaluate": _evaluate,
    "tune": _tune,
    "caption": _caption,
    "index": _index,
    "search": _search,
    "neighbours": _neighbours,
    "plan": _plan,
}


def _set_up_platform() -> None:
    """Joins the other processes where there are any, and keeps compiled programs for the next start."""
    set_up_process()
    import jax

    from caption_jax.runtime.libraries import quiet_libraries

    quiet_libraries()
    if _MODE.value == "plan":
        from caption_jax.planning.topology import prepare

        prepare(_TOPOLOGY.value)
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if several or "JAX_COORDINATOR_ADDRESS" in os.environ:
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}  # found without them on clusters
        jax.distributed.initialize(**{key: int(os.environ[name]) for key, name in names.items() if name in os.environ})
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR names one for all runs
        jax.config.update("jax_compilation_cache_dir", os.path.join(_WORKDIR.value, "compile_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs add up to seconds, too
    logging.set_verbosity(logging.INFO if _MODE.value in ("train", "plan") else logging.WARNING)
    logging.info("process %d of %d, devices: %s", jax.process_index(), jax.process_count(), jax.devices())


def _with_stored_config(argv: list[str]) -> list[str]:
    """Adds --config=configs/workdir.py:WORKDIR for the modes that can use the config a run was trained with."""
    given = _given(argv)
    if given.get("mode", "train") == "train" or "config" in given or "workdir" not in given:
        return argv
    stored = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", "workdir.py")
    return [*argv[:1], f"--config={stored}:{given['workdir']}", *argv[1:]]


def _given(argv: list[str]) -> dict[str, str]:
    """Flags as they were typed, before absl reads them."""
    given = {}
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = flag.lstrip("-").partition("=")
        if flag.startswith("-"):
            given[name] = value if equals else following  # both --workdir=W and --workdir W
    return given


if __name__ == "__main__":
    if _given(sys.argv).get("mode") not in ("caption", "search"):  # these are over before it pays
        restart_with_huge_pages(__file__)  # before anything is imported that takes long
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(command, argv=_with_stored_config(sys.argv))
