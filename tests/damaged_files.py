"""Hypothesis strategies for damaged files, and checks that each file is read or rejected with an error naming it."""

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

IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
NAMES = ("a.png", "b.png", "c.png")
CAPTIONS = ("A dog, running.", 'It says "woof".', "Zwei größere Katzen")
SIDE = 16


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
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\x00"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


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
    """An edited image file of any supported format."""
    image = encode_image(draw(st.sampled_from(IMAGE_FORMATS)), draw(st.sampled_from(["RGB", "L"])))
    return apply_edits(image, draw(edits))


@st.composite
def damaged_captions(draw) -> bytes:
    """A caption file of any supported format, with a replaced JSON value, edited bytes or both."""
    name = draw(st.sampled_from(sorted(CAPTION_FILES)))
    content = copy.deepcopy(CAPTION_FILES[name])
    if not isinstance(content, str):
        if draw(st.booleans()):
            content = _replace_value(draw, content)
        lines = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        content = "\n".join(map(json.dumps, lines))
        if draw(st.booleans()):
            return content.encode()
    return apply_edits(content.encode(), draw(edits))


def _replace_value(draw, content: Any) -> Any:
    """Replaces one value at any depth of a JSON value."""
    keys = range(len(content)) if isinstance(content, list) else sorted(content) if isinstance(content, dict) else ()
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(json_values)
    key = draw(st.sampled_from(list(keys)))
    content[key] = _replace_value(draw, content[key])
    return content


def check_image(data: bytes) -> bool:
    """Decodes an image and makes its thumbnail.

    Returns whether the image is readable. Errors other than `ImageError` propagate.
    """
    try:
        pixels = decode_image(data, SIDE, name="damaged")
        thumbnail = make_thumbnail(data, SIDE, name="damaged")
    except ImageError as error:
        assert "damaged" in str(error) and "\n" not in str(error)
        return False
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    assert thumbnail.ndim == 3 and max(thumbnail.shape[:2]) <= SIDE
    return True


def check_captions(data: bytes) -> bool:
    """Opens a folder of images with a caption file, skipping invalid records.

    Returns whether the file has valid records. Errors other than `DataError` propagate.
    """
    root = Path(_make_image_folder().name)
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
def _make_image_folder() -> tempfile.TemporaryDirectory:
    """Writes the images to a folder that is deleted when the process exits."""
    folder = tempfile.TemporaryDirectory()
    images = Path(folder.name) / "images"
    images.mkdir()
    for name in NAMES:
        (images / name).write_bytes(encode_image("PNG", "RGB"))
    return folder
