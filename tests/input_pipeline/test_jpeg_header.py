"""The header parser agrees with Pillow, or leaves the file to it."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from input_pipeline import images
from input_pipeline.images import Preprocessing
from input_pipeline.jpeg_header import JpegHeader, read_jpeg_header

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def encode(mode: str = "RGB", orientation: int | None = None, **options) -> bytes:
    """Returns a JPEG of 112 x 80 pixels."""
    if orientation is not None:
        exif = Image.Exif()
        exif[0x010F] = "camera"
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def insert_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Inserts a segment at the start of a JPEG."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def exif_block(kind: int = 3, count: int = 1, value: int = 6, order: str = "<") -> bytes:
    """Returns an EXIF block whose only entry is the orientation."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(f"{order}HHIHH", 0x0112, kind, count, value, 0)
    return b"Exif\0\0" + start + struct.pack(f"{order}IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_size_and_orientation(mode, orientation):
    assert read_jpeg_header(encode(mode, orientation)) == JpegHeader(112, 80, orientation or 1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_and_padding_before_markers(order):
    data = insert_segment(encode(), 0xE1, exif_block(order=order))
    assert read_jpeg_header(data) == read_jpeg_header(data[:2] + b"\xff\xff" + data[2:]) == JpegHeader(112, 80, 6)


@pytest.mark.parametrize(
    "data",
    [
        encode("CMYK"),
        encode()[:150],
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        insert_segment(encode(), 0xE2, b"MPF\0" + bytes(20)),
        insert_segment(encode(), 0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="6"/>'),
        insert_segment(encode(), 0xE1, exif_block(kind=4)),
        insert_segment(encode(), 0xE1, exif_block(count=2)),
        insert_segment(encode(), 0xE1, exif_block()[:20]),
        insert_segment(encode(), 0xE1, b"Exif\0\0not TIFF"),
        insert_segment(encode(orientation=3), 0xE1, exif_block()),
    ],
)
def test_unusual_files_are_left_to_pillow(data):
    assert read_jpeg_header(data) is None


@pytest.mark.parametrize("resize", ["stretch", "crop"])
@pytest.mark.parametrize(
    "data",
    [
        *(encode(orientation=orientation) for orientation in range(1, 9)),
        encode("L"),
        encode(progressive=True),
        encode("CMYK"),
        insert_segment(encode(), 0xE1, b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="6"/>'),
        insert_segment(encode(), 0xE1, exif_block(kind=4)),
        insert_segment(encode(), 0xE1, exif_block(value=77)),
    ],
)
def test_pixels_are_the_same_as_if_pillow_opened_the_file(data, resize, monkeypatch):
    preprocessing = Preprocessing(24, resize)
    pixels = preprocessing.load(data)
    monkeypatch.setattr(images, "read_jpeg_header", lambda data: None)
    np.testing.assert_array_equal(pixels, preprocessing.load(data))


def test_photographs_are_not_opened_by_pillow_and_have_the_same_pixels(shared_data, monkeypatch):
    paths = sorted((shared_data / "coco_mini" / "images").glob("*.jpg"))[:20]
    preprocessing = Preprocessing(224)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *arguments: pytest.fail("opened by Pillow"))
        pixels = [preprocessing.load(path) for path in paths]
    monkeypatch.setattr(images, "read_jpeg_header", lambda data: None)
    for path, actual in zip(paths, pixels, strict=True):
        np.testing.assert_array_equal(actual, preprocessing.load(path), err_msg=path.name)
