"""Hypothesis strategies for damaged files, and checks that each file is read or rejected with an error naming it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import image_fuzzing
import numpy as np
from hostile_images import SIZED_FORMATS, declare_size
from hypothesis import strategies as st
from PIL import Image

from caption_jax.files import json_line
from caption_jax.metrics.results import read_annotations, read_results
from caption_jax.metrics.scores import score_images
from caption_jax.retrieval.index import Entry, ImageIndex, ModelIdentity, open_for_writing
from caption_jax.retrieval.neighbours import ImageNeighbours, read_neighbours, write_neighbours
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError, UserError
from input_pipeline.sources import open_splits
from input_pipeline.terminal_text import escape, escape_message

IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
NAMES = ("a.png", "b.png", "c.png")
CAPTIONS = ("A dog, running.", 'It says "woof".', "Zwei größere Katzen")


@functools.cache
def encode_image(image_format: str, mode: str) -> bytes:
    """Returns a small random image, encoded in a format and with the bands of a Pillow mode."""
    pixels = np.random.default_rng(len(image_format)).integers(0, 256, (23, 31, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format)
    return buffer.getvalue()


CAPTION_FILES: dict[str, Any] = {
    "captions.csv": "image,caption,split\n" + "\n".join(f'{name},"{CAPTIONS[0]}",train' for name in NAMES),
    "captions.tsv": "image\tcaption\n" + "\n".join(f"{name}\t{CAPTIONS[2]}" for name in NAMES),
    "token.txt": "\n".join(f"{name}#{number}\t{CAPTIONS[number]}" for number, name in enumerate(NAMES)),
    "rows.jsonl": [{"image": name, "captions": list(CAPTIONS)} for name in NAMES],
    "coco.json": {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "id": number, "caption": CAPTIONS[number]} for number in range(3)],
    },
    "karpathy.json": {
        "images": [
            {"filename": name, "filepath": "", "cocoid": number, "split": "val", "sentences": [{"raw": CAPTIONS[0]}]}
            for number, name in enumerate(NAMES)
        ]
    },
}

# Each edit overwrites bytes, inserts bytes or truncates the file, at a position given as a fraction of its length.
edits = st.lists(
    st.tuples(st.sampled_from(["overwrite", "insert", "truncate"]), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
)
# Strings that stand for values which `json.dumps` does not write.
PLACEHOLDERS = {
    "@digits@": "1" * 5000,
    "@infinity@": "1e999",
    "@nested@": "[" * 400 + "]" * 400,
    "@too nested@": '{"a":' * 5000 + "1" + "}" * 5000,
    "@long@": json.dumps("x" * 20_000),
    "@twice@": '{"image": "a.png", "image": "b.png", "caption": "x"}',
}
_HOSTILE_TEXTS = (
    *("\x00", "\ud800", "\udce9", "\x1b[2J", "a\nb", "\u202e", "../../etc/passwd", "/dev/zero", "/", "..", ""),
    *("1" * 5000, "x" * 2000, "[", "['a', 'b']", '[["a"]]', "NaN", "=1+1", "\ufeff", "\u2028", "a" * 300 + ".png"),
)
declared_sizes = st.integers(1, 500) | st.integers(1, 2**17) | st.sampled_from([2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(_HOSTILE_TEXTS)
    | st.sampled_from(sorted(PLACEHOLDERS)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def dump_json(value: Any) -> str:
    """Serialises a value and replaces the placeholders in it."""
    text = json.dumps(value)
    for placeholder, replacement in PLACEHOLDERS.items():
        text = text.replace(json.dumps(placeholder), replacement)
    return text


def apply_edits(data: bytes, file_edits: list[tuple[str, float, bytes]]) -> bytes:
    """Applies edits in order."""
    for operation, position, content in file_edits:
        start = int(position * len(data))
        if operation == "truncate":
            data = data[:start]
        else:
            data = data[:start] + content + data[start + (len(content) if operation == "overwrite" else 0) :]
    return data


@st.composite
def damaged_images(draw) -> bytes:
    """An edited image file of any supported format, or one that declares a random size."""
    if draw(st.booleans()):
        image = declare_size(draw(st.sampled_from(SIZED_FORMATS)), draw(declared_sizes), draw(declared_sizes))
        return apply_edits(image, draw(edits)) if draw(st.booleans()) else image
    image = encode_image(draw(st.sampled_from(IMAGE_FORMATS)), draw(st.sampled_from(["RGB", "L"])))
    return apply_edits(image, draw(edits))


@st.composite
def damaged_captions(draw) -> bytes:
    """A caption file of any supported format, with replaced values, edited bytes or both."""
    name = draw(st.sampled_from(sorted(CAPTION_FILES)))
    content = copy.deepcopy(CAPTION_FILES[name])
    if isinstance(content, str):
        text = _replace_cells(draw, content) if draw(st.booleans()) else content
    else:
        for _ in range(draw(st.integers(0, 3))):
            content = replace_value(draw, content)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        text = "\n".join(map(dump_json, lines))
    data = text.encode("utf-8", "surrogatepass")
    return apply_edits(data, draw(edits)) if draw(st.booleans()) else data


def _replace_cells(draw, text: str) -> str:
    """Replaces cells of a table, or repeats or removes rows."""
    delimiter = "\t" if "\t" in text else ","
    rows = [line.split(delimiter) for line in text.split("\n")]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        action = draw(st.sampled_from(["replace", "replace", "insert", "remove", "repeat"]))
        cell = draw(st.sampled_from(('"', '""', '"a', *_HOSTILE_TEXTS)) | st.text(max_size=5))
        column = draw(st.integers(0, max(len(rows[row]) - 1, 0)))
        if action == "insert":
            rows[row].insert(column, cell)
        elif action == "repeat":
            rows.insert(row, list(rows[row]))
        elif action == "replace" and rows[row]:
            rows[row][column] = cell
        elif rows[row]:
            del rows[row][column]
    return "\n".join(map(delimiter.join, rows))


def iterate_mutants(content: Any, values: Iterable[Any]) -> Iterator[Any]:
    """Yields copies of a JSON value in which each value at any depth is replaced by each of other values."""
    yield from values
    keys = range(len(content)) if isinstance(content, list) else content if isinstance(content, dict) else ()
    for key in keys:
        for mutant in iterate_mutants(content[key], values):
            copied = copy.copy(content)
            copied[key] = mutant
            yield copied


@st.composite
def damaged_indexes(draw) -> dict[str, bytes]:
    """The files of an image index with neighbours, of which one is damaged."""
    files = dict(_make_index())
    name = draw(st.sampled_from(sorted(files)))
    if name.endswith(".f32") or draw(st.booleans()):
        return {**files, name: apply_edits(files[name], draw(edits))}
    lines = [json.loads(line) for line in ([files[name]] if name == "index.json" else files[name].splitlines())]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(lines) - 1))
        lines[row] = replace_value(draw, lines[row])
    return {**files, name: "".join(dump_json(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")}


def replace_value(draw, content: Any) -> Any:
    """Replaces one value at any depth of a JSON value."""
    keys = range(len(content)) if isinstance(content, list) else sorted(content) if isinstance(content, dict) else ()
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(json_values)
    key = draw(st.sampled_from(list(keys)))
    content[key] = replace_value(draw, content[key])
    return content


def check_image(data: bytes) -> bool:
    """Decodes an image and makes its thumbnail.

    Returns whether the image is readable. Errors other than `ImageError` propagate.
    """
    return not image_fuzzing.check_image(data)


@contextlib.contextmanager
def time_limit(seconds: float = 5) -> Iterator[None]:
    """Interrupts the `with` block in the main thread after a processor time, which other processes do not affect."""

    def interrupt(*_: object) -> None:
        raise AssertionError(f"took more than {seconds} seconds of processor time")

    previous = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def check_captions(data: bytes) -> bool:
    """Opens a folder of images with a caption file, skipping invalid records.

    Returns whether the file has valid records. Errors other than `DataError` propagate.
    """
    root = Path(_make_image_folder().name)
    (root / "captions").write_bytes(data)
    try:
        with time_limit():
            splits = open_splits(DataSpec(source="folder", root=str(root), captions=("captions",), on_error="skip"))
    except DataError as error:
        assert str(root) in str(error)
        _check_message(error)
        return False
    for split in splits.values():
        for record in split:
            assert record.image.is_file() and record.captions and all(map(str.strip, record.captions))
    return True


def _check_message(error: UserError) -> None:
    """Checks that a message is short and, as it is printed, cannot affect the terminal."""
    printed = escape_message(error, "\n  ")
    assert len(printed) < 20_000 and not set("\x00\x1b\r\u202e") & set(printed)
    printed.encode()


def check_results(data: bytes) -> bool:
    """Reads a file as results and as references, and scores the captions that are read.

    Returns whether the file is valid. Errors other than `DataError` propagate.
    """
    path = Path(_make_image_folder().name) / "results"
    path.write_bytes(data)
    is_valid = False
    with time_limit():
        for read in (read_results, read_annotations, _read_split):
            try:
                captions = read(path)
            except DataError as error:
                assert str(path) in str(error)
                _check_message(error)
            else:
                is_valid = True
                if read is read_results:
                    score_images({image_id: [caption or "x"] for image_id, caption in captions.items()}, captions)
    return is_valid


def _read_split(path: Path) -> dict:
    return read_annotations(path, split="train", ids="file_name")


def check_index(files: dict[str, bytes]) -> bool:
    """Reads an index and its neighbours. Returns whether they are valid. Errors other than `UserError` propagate."""
    folder = Path(_make_image_folder().name) / "index"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    is_valid = True
    with time_limit():
        try:
            index = ImageIndex(folder)
            for entry in (*index.entries(), *index.at([len(index) - 1] if len(index) else [])):
                escape(entry.key)
                json_line(dataclasses.asdict(entry)).encode()
            assert index.vectors.shape == (len(index), index.dimension)
            read_neighbours(folder, "val", at_least=1)
        except UserError as error:
            assert str(folder) in str(error)
            _check_message(error)
            is_valid = False
    return is_valid


@functools.cache
def _make_index() -> tuple[tuple[str, bytes], ...]:
    """Returns the files of a valid index with neighbours."""
    with tempfile.TemporaryDirectory() as folder:
        with open_for_writing(folder, 3, ModelIdentity(7, "ab" * 32)) as index:
            entries = [Entry("a"), Entry("/b.png", "/b.png", "a red kite", 12, 34), Entry(3)]
            index.append(np.eye(3, dtype=np.float32), entries)
            neighbours = [ImageNeighbours("a", ["/b.png", 3], [0.5, 0.25]), ImageNeighbours(3, [], [])]
            write_neighbours(index, "val", 2, neighbours)
        return tuple((path.name, path.read_bytes()) for path in sorted(Path(folder).iterdir()) if path.name != "lock")


@functools.cache
def _make_image_folder() -> tempfile.TemporaryDirectory:
    """Writes the images to a folder that is deleted when the process exits."""
    folder = tempfile.TemporaryDirectory()
    images = Path(folder.name) / "images"
    images.mkdir()
    for name in NAMES:
        (images / name).write_bytes(encode_image("PNG", "RGB"))
    return folder
