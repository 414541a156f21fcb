"""The command line's modes `index`, `search` and `neighbours`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from caption_jax.errors import ConfigError
from caption_jax.files import json_line, pass_any_file_name
from caption_jax.inference.caption_files import find_images
from caption_jax.inference.captioner import Captioner
from caption_jax.retrieval.index import ImageIndex, ModelIdentity, writing
from caption_jax.retrieval.index_builder import Changes, update_index
from caption_jax.retrieval.neighbours import find_neighbours, write_neighbours
from caption_jax.retrieval.search import Searcher
from caption_jax.runs.description import RunDescription
from caption_jax.runs.loading import load_model
from caption_jax.runs.weights import fingerprint
from caption_jax.specs import DataSpec, DecodeSpec
from input_pipeline.images import IMAGE_SUFFIXES, ImageError
from input_pipeline.records import Record, Split
from input_pipeline.sources import get_split, open_splits
from input_pipeline.special_tokens import UNK

_PROGRESS_SECONDS = 10.0


def index_folder(workdir: str, given: str | None) -> Path:
    """Where the index of a run is: the folder that was given, or `index` in the workdir.

    Raises:
        ValueError: that is on a bucket, whose files cannot be mapped into memory.
    """
    folder = given or os.path.join(workdir, "index")
    if "://" in folder:
        raise ConfigError(f"an index has to be on a local disk, not in {folder}: name a folder with --index")
    return Path(folder)


def named_images(arguments: Sequence[str]) -> list[Record]:
    """The images that paths, globs and folders name.

    Raises:
        ValueError: they name none.
    """
    paths = [os.path.abspath(path) for path in find_images(arguments)]
    if not paths:
        raise ConfigError(
            f"no images to index: {list(arguments)} names no file, and no folder that holds {' '.join(IMAGE_SUFFIXES)}"
        )
    return [Record(Path(path), (), path, name=path) for path in paths]


def split_images(data: DataSpec, split: str) -> Split:
    """The images of one split of a config's data.

    Raises:
        DataError: there is no such split.
    """
    return get_split(open_splits(data), split)


def index_images(
    workdir: str,
    folder: Path,
    images: Iterable[Record],
    *,
    checkpoint: str,
    decode: DecodeSpec,
    captions: str,
    missing: str,
) -> int:
    """Brings the index in `folder` up to date; see `update_index`.

    Returns:
        Exit status: 0, or 1 when an image could not be read.

    Raises:
        ValueError: the index was made with another model.
        FileNotFoundError: there is no such run.
    """
    images = list(images)
    captioner, description, model = _load(workdir, checkpoint, decode)
    dimension = captioner.embed_images([]).shape[1]
    with writing(folder, dimension, model) as index:
        changes = update_index(
            index,
            images,
            captioner,
            description.preprocessing,
            captions=captions,
            missing=missing,
            progress=_Progress(),
            on_error=lambda error: print(f"error: {error}", file=sys.stderr, flush=True),
        )
        _report(index, changes, missing)
    return 1 if changes.failures else 0


def search_images(workdir: str, folder: Path, query: str, *, checkpoint: str, top: int, method: str, form: str) -> int:
    """Prints the images that fit a query best, a line each: rank, score, path and caption, or JSON.

    Args:
        workdir: of the run whose model made the index.
        folder: of the index.
        query: words, or the path of an image: any file that is there, and whatever ends as an image's name does.
        checkpoint: "best" or "last".
        top: how many at most.
        method: "exact" or "approx", see `Searcher`.
        form: "text" (tabs between) or "jsonl".

    Returns:
        Exit status: 0, or 1 when the query is an image that cannot be read.

    Raises:
        FileNotFoundError: there is no such run, or no index.
        ValueError: the index was made with another model.
    """
    captioner, description, model = _load(workdir, checkpoint)
    index = ImageIndex(folder)
    index.check_model(model)
    if os.path.isfile(query) or query.lower().endswith(IMAGE_SUFFIXES):
        try:
            vectors = captioner.embed_images([query])
        except ImageError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    else:
        vectors = captioner.embed_texts([query])
        if UNK in description.text_reader.encode([query]):
            print(f"some of {query!r} is in no caption that the model was trained on", file=sys.stderr)
    scores, rows = (found[0].tolist() for found in Searcher(index.vectors, method).search(vectors, top))
    pass_any_file_name()
    for rank, (score, entry) in enumerate(zip(scores, index.at(rows), strict=True), 1):
        if form == "jsonl":
            known = {"path": entry.path, "id": entry.id, "caption": entry.caption}
            print(json_line({"rank": rank, "score": score, **known}))
        else:
            print(f"{rank}\t{score:.4f}\t{entry.key}\t{entry.caption or ''}")
    return 0


def store_neighbours(workdir: str, folder: Path, images: Split, *, checkpoint: str, count: int) -> int:
    """Stores, beside an index, the images in it that are nearest to each image of a split.

    Args:
        workdir: of the run whose model made the index.
        folder: of the index.
        images: the split.
        checkpoint: "best" or "last".
        count: neighbours of an image.

    Returns:
        Exit status: 0, or 1 when an image could not be read.

    Raises:
        FileNotFoundError: there is no such run, or no index.
        ValueError: the index was made with another model.
    """
    captioner, description, model = _load(workdir, checkpoint)
    index = ImageIndex(folder)
    index.check_model(model)
    errors: list[ImageError] = []
    found = find_neighbours(index, images, captioner, description.preprocessing, count, errors.append)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    path = write_neighbours(index, images.name, count, found)
    print(f"{path}: {len(found):,} images, up to {count} neighbours each")
    return 1 if errors else 0


def _load(
    workdir: str, checkpoint: str, decode: DecodeSpec | None = None
) -> tuple[Captioner, RunDescription, ModelIdentity]:
    model = load_model(workdir, checkpoint)
    description, weights = model.description, model.weights
    captioner = Captioner(description, weights.variables, decode)
    return captioner, description, ModelIdentity(weights.step, fingerprint(weights.variables))


class _Progress:
    """Says on the error stream how far a long run is."""

    def __init__(self):
        self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self._said >= _PROGRESS_SECONDS:
            self._said = time.monotonic()
            print(f"{done:,} of {total:,} images", file=sys.stderr, flush=True)


def _report(index: ImageIndex, changes: Changes, missing: str) -> None:
    counts = f"{changes.added:,} added, {changes.renewed:,} renewed, {changes.unchanged:,} unchanged"
    print(f"{index.folder}: {_images(len(index))} ({counts})")
    if changes.missing:
        done = "dropped" if missing == "drop" else "kept; --missing=drop takes them out"
        first = ", ".join(changes.missing[:3]) + (", ..." if len(changes.missing) > 3 else "")
        print(f"no longer there: {_images(len(changes.missing))} ({done}): {first}", file=sys.stderr)
    if changes.failures:
        print(f"{_images(len(changes.failures))} could not be read: see the errors above", file=sys.stderr)


def _images(count: int) -> str:
    return f"{count:,} image" + ("" if count == 1 else "s")
