"""The command line modes `index`, `search` and `neighbours`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from caption_jax.errors import ConfigError
from caption_jax.files import allow_any_output, json_line
from caption_jax.inference.caption_files import describe_no_match, find_images
from caption_jax.inference.captioner import Captioner
from caption_jax.named_models import is_shared_copy
from caption_jax.retrieval.index import ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.index_builder import Changes, assist_embedding, update_index
from caption_jax.retrieval.neighbours import find_neighbours, write_neighbours
from caption_jax.retrieval.search import Searcher
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import load_model
from caption_jax.runs.weights import fingerprint
from caption_jax.runtime.divided_work import is_assistant, share_status
from caption_jax.specs import DataSpec, RunSpec
from caption_jax.telemetry.progress import SILENT, Display
from input_pipeline.files import is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES
from input_pipeline.images import ImageError
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Record, Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.special_tokens import UNK
from input_pipeline.terminal_text import escape, escape_message


def get_index_folder(workdir: str, index_flag: str | None) -> Path:
    """Returns the folder of the index: the value of `--index`, or `index` in the workdir if it is not set.

    Raises:
        ConfigError: the folder is on a bucket, whose files cannot be memory-mapped, or is a file; or `--index` is
            missing for a model given by name.
    """
    if is_shared_copy(workdir) and not index_flag:
        raise ConfigError("a model given by name has no folder for an index: set --index to a folder")
    folder = index_flag or os.path.join(workdir, "index")
    if is_on_bucket(folder):
        raise ConfigError(f"the index must be on a local disk, not in {folder}: set --index to a local folder")
    if os.path.isfile(folder):
        raise ConfigError(f"the index must be a folder, but {folder} is a file: set --index to a folder")
    return Path(folder)


def match_images(arguments: Sequence[str]) -> list[Record]:
    """Returns the images that match paths, globs and folders.

    Raises:
        ConfigError: there are no matches.
    """
    paths = [os.path.abspath(path) for path in find_images(arguments)]
    if not paths:
        raise ConfigError(describe_no_match(arguments))
    return [Record(Path(path), (), path, name=path) for path in paths]


def open_split(data: DataSpec, split: str, limits: Limits = DEFAULT_LIMITS) -> Split:
    """Opens the dataset and returns one of its splits.

    Raises:
        DataError: the split does not exist.
    """
    return get_split(open_splits(data, limits), split)


def index_images(
    workdir: str,
    folder: Path,
    images: Iterable[Record],
    *,
    checkpoint: str,
    spec: RunSpec,
    captions: str,
    missing: str,
    display: Display = SILENT,
) -> int:
    """Creates or updates the index in `folder`, and prints a summary.

    Args:
        workdir: workdir of the run.
        folder: folder of the index.
        images: the images to index.
        checkpoint: "best", "last" or a step.
        spec: decoding settings for the generated captions, and limits on images.
        captions: "generated" or "none"; see `update_index`.
        missing: "keep" or "drop"; see `update_index`.
        display: shows the progress.

    Returns:
        The exit status: 0, or 1 if an image could not be read.

    Raises:
        WorkdirError: the index was built with another model.
        FileNotFoundError: the run does not exist.
    """
    images = list(images)
    with display.phase("loading the model"):
        captioner, description, model = _load(workdir, checkpoint, spec)
    dimension = captioner.embed_images([]).shape[1]
    if is_assistant():
        assist_embedding(images, captioner, description.preprocessing, captions)
        return share_status()
    with open_for_writing(folder, dimension, model) as index:
        changes = update_index(
            index,
            images,
            captioner,
            description.preprocessing,
            captions=captions,
            missing=missing,
            display=display,
            on_error=lambda error: print(f"error: {escape_message(error)}", file=sys.stderr, flush=True),
        )
        print_changes(index.folder, len(index), changes, missing)
    return share_status(1 if changes.failures else 0)


def search_images(
    workdir: str,
    folder: Path,
    query: str,
    *,
    checkpoint: str,
    top: int,
    method: str,
    output_format: str,
    spec: RunSpec,
) -> int:
    """Prints the images that best match a query, one per line, with rank, score, path and caption.

    Args:
        workdir: workdir of the run that built the index.
        folder: folder of the index.
        query: text, or the path of an image. Existing files and names with an image suffix are treated as paths.
        checkpoint: "best", "last" or a step.
        top: maximum number of results.
        method: "exact" or "approx"; see `Searcher`.
        output_format: "text" (tab-separated) or "jsonl".
        spec: limits on images.

    Returns:
        The exit status: 0, or 1 if the query is an image that cannot be read.

    Raises:
        FileNotFoundError: the run or the index does not exist.
        WorkdirError: the index was built with another model.
    """
    captioner, description, model = _load(workdir, checkpoint, spec)
    description.check_joint_embedding()  # before an error that suggests to build an index
    if is_assistant():  # a single query cannot be divided
        return share_status()
    index = ImageIndex(folder)
    index.check_model(model)
    if os.path.isfile(query) or query.lower().endswith(NAME_SUFFIXES):
        try:
            vectors = captioner.embed_images([query])
        except ImageError as error:
            print(f"error: {escape_message(error)}", file=sys.stderr)
            return share_status(1)
    else:
        vectors = captioner.embed_texts([query])
        encode = description.text_tokenizer.encode
        if UNK in encode([query]):
            words = [word for word in query.split() if UNK in encode([word])]
            shown = escape(", ".join(words) or query)
            print(f"{query!r} contains words that do not occur in the training captions: {shown}", file=sys.stderr)
    scores, rows = (result[0].tolist() for result in Searcher(index.vectors, method).search(vectors, top))
    allow_any_output()
    for rank, (score, entry) in enumerate(zip(scores, index.at(rows), strict=True), 1):
        if output_format == "jsonl":
            fields = {"path": entry.path, "id": entry.id, "caption": entry.caption}
            print(json_line({"rank": rank, "score": score, **fields}))
        else:
            print(f"{rank}\t{score:.4f}\t{escape(entry.key)}\t{escape(entry.caption or '')}")
    return share_status(0)


def store_neighbours(
    workdir: str,
    folder: Path,
    images: Split,
    *,
    checkpoint: str,
    count: int,
    spec: RunSpec,
    display: Display = SILENT,
) -> int:
    """Finds the indexed images nearest to each image of a split, and stores them in the folder of the index.

    Args:
        workdir: workdir of the run that built the index.
        folder: folder of the index.
        images: the split with the query images.
        checkpoint: "best", "last" or a step.
        count: number of neighbours per image.
        spec: limits on images.
        display: shows the progress.

    Returns:
        The exit status: 0, or 1 if an image could not be read.

    Raises:
        FileNotFoundError: the run or the index does not exist.
        WorkdirError: the index was built with another model.
    """
    with display.phase("loading the model"):
        captioner, description, model = _load(workdir, checkpoint, spec)
    if is_assistant():
        description.check_joint_embedding()
        assist_embedding(images, captioner, description.preprocessing)
        return share_status()
    index = ImageIndex(folder)
    index.check_model(model)
    errors: list[ImageError] = []
    neighbours = find_neighbours(index, images, captioner, description.preprocessing, count, errors.append, display)
    for error in errors:
        print(f"error: {escape_message(error)}", file=sys.stderr)
    path = write_neighbours(index, images.name, count, neighbours)
    print(f"{escape(path)}: {len(neighbours):,} images, up to {count} neighbours each")
    return share_status(1 if errors else 0)


def _load(workdir: str, checkpoint: str, spec: RunSpec) -> tuple[Captioner, RunDescription, ModelIdentity]:
    model = load_model(workdir, checkpoint)
    description, weights = model.description.with_limits(spec.limits), model.weights
    captioner = Captioner(description, weights.variables, spec.decode, workdir=workdir, step=weights.step)
    return captioner, description, ModelIdentity(weights.step, fingerprint(weights.variables))


def print_changes(folder: Path, size: int, changes: Changes, missing: str = "keep") -> None:
    """Prints the summary of an update.

    Args:
        folder: folder of the index.
        size: number of images of the index.
        changes: what the update has changed.
        missing: what it has done with images whose files are gone.
    """
    counts = f"{changes.added:,} added, {changes.updated:,} updated, {changes.unchanged:,} unchanged"
    print(f"{escape(folder)}: {_format_images(size)} ({counts})")
    if changes.missing:
        action = "dropped" if missing == "drop" else "kept; --missing=drop removes them"
        first = ", ".join(map(escape, changes.missing[:3])) + (", ..." if len(changes.missing) > 3 else "")
        print(f"missing files: {_format_images(len(changes.missing))} ({action}): {first}", file=sys.stderr)
    if len(changes.failures) > 1:
        print(f"{_format_images(len(changes.failures))} could not be read: see the errors above", file=sys.stderr)


def _format_images(count: int) -> str:
    return f"{count:,} image" + ("" if count == 1 else "s")
