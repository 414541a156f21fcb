"""Encoded images that declare huge sizes, or that take far more memory or time to decode than files of their size."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIZED_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "AVIF")  # of `declare_size`
PNG_MODES = {"L": 0, "RGB": 2, "P": 3, "LA": 4, "RGBA": 6}


def encode(image: Image.Image, image_format: str, **options) -> bytes:
    """Encodes an image with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def make_png(width: int, height: int, mode: str = "RGB", bits: int = 8, *, chunks: bytes = b"") -> bytes:
    """Returns a PNG of zeros, written in pieces so that making it takes little memory.

    Args:
        width: width in pixels.
        height: height in pixels.
        mode: "L", "RGB", "P", "LA" or "RGBA".
        bits: bits per sample.
        chunks: chunks between the header and the pixels.
    """
    samples = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    row_bytes = 1 + (width * samples * bits + 7) // 8
    compressor, total = zlib.compressobj(1), row_bytes * height
    block = bytes(min(total, 2**20))
    pixels = [compressor.compress(block[: min(len(block), total - start)]) for start in range(0, total, len(block))]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, PNG_MODES[mode], 0, 0, 0))
    palette = png_chunk(b"PLTE", bytes(range(48))) if mode == "P" else b""
    data = png_chunk(b"IDAT", b"".join([*pixels, compressor.flush()]))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunks + data + png_chunk(b"IEND", b"")


def declare_size(image_format: str, width: int, height: int) -> bytes:
    """Returns a small image whose header declares another size, where the format stores it in a fixed place.

    Args:
        image_format: "PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000" or "AVIF".
        width: declared width, truncated to the bits of the format.
        height: declared height.
    """
    data = bytearray(_encode_small(image_format))
    if image_format == "PNG":
        data[16:24] = struct.pack(">II", width % 2**32, height % 2**32)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif image_format == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height % 2**16, width % 2**16)
    elif image_format == "GIF":
        data[6:10] = struct.pack("<HH", width % 2**16, height % 2**16)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<II", width % 2**31, height % 2**31)
    elif image_format == "TIFF":
        for tag, value in ((256, width), (257, height)):
            start = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
            data[start : start + 4] = struct.pack("<I", value % 2**32)
    elif image_format == "PPM":
        data = bytearray(b"P6 %d %d 255\n" % (width, height)) + data[-40:]
    elif image_format == "WEBP":
        start = data.index(b"VP8L") + 9
        bits = (width - 1) % 2**14 | (height - 1) % 2**14 << 14
        data[start : start + 4] = struct.pack("<I", bits | 1 << 28)
    elif image_format == "JPEG2000":
        start = data.index(b"ihdr") + 4
        data[start : start + 8] = struct.pack(">II", height % 2**32, width % 2**32)
    else:
        start = data.index(b"ispe") + 8
        data[start : start + 8] = struct.pack(">II", width % 2**32, height % 2**32)
    return bytes(data)


@functools.cache
def _encode_small(image_format: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image, options = Image.fromarray(pixels), {"WEBP": {"lossless": True, "alpha_quality": 100}}
    if image_format == "WEBP":
        image.putalpha(200)
    if image_format == "TIFF":
        options["TIFF"] = {"tiffinfo": {256: 30, 257: 20}}
    return encode(image, image_format, **options.get(image_format, {}))


def repeat_scans(side: int, count: int) -> bytes:
    """Returns a progressive JPEG with additional scans of a few bytes, each of which visits the whole image."""
    data = encode(Image.new("RGB", (side, side), (120, 30, 200)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def make_many_chunks(count: int) -> bytes:
    """Returns a PNG with many empty chunks before the pixels."""
    return make_png(8, 8, chunks=png_chunk(b"teXt", b"") * count)


def make_text_bomb(size: int) -> bytes:
    """Returns a PNG whose compressed text has `size` bytes."""
    return make_png(8, 8, chunks=png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9)))


def make_profile_bomb(size: int) -> bytes:
    """Returns a PNG whose compressed ICC profile has `size` bytes."""
    return make_png(8, 8, chunks=png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(size), 9)))


def make_segments(count: int) -> bytes:
    """Returns a JPEG with many empty segments before the pixels."""
    data = encode(Image.new("RGB", (16, 16)), "JPEG")
    return data[:2] + b"\xff\xfe\x00\x02" * count + data[2:]


def make_gif_comment(blocks: int) -> bytes:
    """Returns a GIF with a comment of many blocks."""
    data = encode(Image.new("P", (16, 16)), "GIF")
    header_end = 13 + 3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 13
    return data[:header_end] + b"\x21\xfe" + (b"\x01a") * blocks + b"\0" + data[header_end:]


def make_pnm_comments(count: int) -> bytes:
    """Returns a plain PNM with many comments between its numbers."""
    return b"P2 4 4 255\n" + b"#\n" * count + b" 7" * 16


def make_slow_pnm(width: int, height: int) -> bytes:
    """Returns a PNM with a maximum other than 255, which Pillow decodes in Python."""
    return b"P5 %d %d 254\n" % (width, height) + bytes(width * height)


def make_tiff(tags: dict[int, tuple[int, int, int]], data: bytes) -> bytes:
    """Returns a greyscale TIFF of 16 x 16 pixels: tag -> (type, count, value or offset), and data at offset 8."""
    common = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries = sorted((tag, *fields) for tag, fields in (common | tags).items())
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<L", 8 + len(data)) + data + directory + bytes(4)


def make_wide_tile(side: int) -> bytes:
    """Returns a TIFF of 16 x 16 pixels in one tile of `side` x `side` pixels."""
    data = zlib.compress(bytes(side * 16))
    tags = {259: (3, 1, 8), 322: (4, 1, side), 323: (4, 1, side), 324: (4, 1, 8), 325: (4, 1, len(data))}
    return make_tiff(tags, data)


def make_tag_bomb(count: int) -> bytes:
    """Returns a TIFF with `count` positions of strips."""
    tags = {259: (3, 1, 1), 273: (4, count, 8), 278: (4, 1, 1), 279: (4, 1, 16)}
    return make_tiff(tags, np.random.default_rng(0).integers(0, 2**31, count, np.int32).tobytes())


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG with a million chunks": lambda: make_many_chunks(1_000_000),
    "PNG with 200 MB of text": lambda: make_text_bomb(200_000_000),
    "PNG with an ICC profile of 200 MB": lambda: make_profile_bomb(200_000_000),
    "JPEG with 4,000 scans": lambda: repeat_scans(3000, 4000),
    "JPEG with a million segments": lambda: make_segments(1_000_000),
    "GIF with a comment of a million blocks": lambda: make_gif_comment(1_000_000),
    "plain PNM with 500,000 comments": lambda: make_pnm_comments(500_000),
    "PNM that is decoded in Python": lambda: make_slow_pnm(10_000, 10_000),
    "TIFF with a tile of 65,535 x 65,535": lambda: make_wide_tile(65_520),
    "TIFF with 20 million strips": lambda: make_tag_bomb(20_000_000),
}
