"""Images and caption files damaged by hypothesis, which must be read or rejected with the name of the file."""

from __future__ import annotations

import copy
import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError
from input_pipeline.images import ImageError, decode_image, make_thumbnail
from input_pipeline.sources import open_splits

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
NAMES = ("a.png", "b.png", "c.png")
CAPTIONS = ("A dog, running.", 'It says "woof".', "Zwei größere Katzen")
SIDE = 16


@functools.cache
def intact_image(kind: str, mode: str) -> bytes:
    """A small random image of the format."""
    pixels = np.random.default_rng(len(kind)).integers(0, 256, (23, 31, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
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

# An edit overwrites bytes, inserts bytes or truncates the file, at a position that is a fraction of its length.
edits = st.lists(
    st.tuples(st.sampled_from(["over", "insert", "cut"]), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\x00"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def apply_edits(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """Applies the changes in order."""
    for change, position, content in changes:
        start = int(position * len(data))
        if change == "cut":
            data = data[:start]
        else:
            data = data[:start] + content + data[start + (len(content) if change == "over" else 0) :]
    return data


@st.composite
def damaged_images(draw) -> bytes:
    """An image file of any supported format with bytes changed, inserted or cut off."""
    return apply_edits(intact_image(draw(st.sampled_from(KINDS)), draw(st.sampled_from(["RGB", "L"]))), draw(edits))


@st.composite
def damaged_captions(draw) -> bytes:
    """A caption file of any supported format with one JSON value replaced, or bytes changed."""
    name = draw(st.sampled_from(sorted(CAPTION_FILES)))
    content = copy.deepcopy(CAPTION_FILES[name])
    if not isinstance(content, str):
        if draw(st.booleans()):
            content = _with_another_value(draw, content)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        content = "\n".join(map(json.dumps, lines))
        if draw(st.booleans()):
            return content.encode()
    return apply_edits(content.encode(), draw(edits))


def _with_another_value(draw, content: Any) -> Any:
    """Replaces one value inside a JSON value, at any depth."""
    keys = range(len(content)) if isinstance(content, list) else sorted(content) if isinstance(content, dict) else ()
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(json_values)
    key = draw(st.sampled_from(list(keys)))
    content[key] = _with_another_value(draw, content[key])
    return content


def check_image(data: bytes) -> bool:
    """Decodes the image in both ways and returns whether it is readable. Errors other than `ImageError` fail."""
    try:
        pixels = decode_image(data, SIDE, name="damaged")
        small = make_thumbnail(data, SIDE, name="damaged")
    except ImageError as error:
        assert "damaged" in str(error) and "\n" not in str(error)
        return False
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    assert small.ndim == 3 and max(small.shape[:2]) <= SIDE
    return True


def check_captions(data: bytes) -> bool:
    """Opens a folder with the caption file, skipping problems. Returns whether any image is valid.

    Errors other than a `DataError` that names the folder fail.
    """
    root = Path(_folder().name)
    (root / "captions").write_bytes(data)
    try:
        splits = open_splits(DataSpec(source="folder", root=str(root), captions=("captions",), on_error="skip"))
    except DataError as error:
        assert str(root) in str(error)
        return False
    for split in splits.values():
        for record in split:
            assert record.image.is_file() and record.captions and all(map(str.strip, record.captions))
    return True


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder with the images, deleted when the process exits."""
    folder = tempfile.TemporaryDirectory()
    images = Path(folder.name) / "images"
    images.mkdir()
    for name in NAMES:
        (images / name).write_bytes(intact_image("PNG", "RGB"))
    return folder
