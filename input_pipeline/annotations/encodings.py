"""Text files in UTF-8 or UTF-16, with or without a byte order mark."""

from __future__ import annotations

import codecs
from pathlib import Path

from input_pipeline.errors import DataError, MissingFileError

# The marks of UTF-32 come first, because the one for little-endian starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_SAMPLE_BYTES = 4096


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8 or UTF-16 without its byte order mark.

    Windows programs write UTF-16. Without a byte order mark, it is recognised by the zero bytes of ASCII characters.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the path is a folder, or the file has another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a file") from None
    encoding = detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not {name} text (byte {error.start}), see line {line}; save it as UTF-8") from None


def detect_encoding(data: bytes) -> str:
    """Returns "utf-8", or the encoding that a byte order mark or the zero bytes of the first 4,096 bytes indicate."""
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return encoding
    sample = data[:_SAMPLE_BYTES]
    if len(data) % 2 == 0 and len(sample) >= 4:
        even, odd = sample[::2].count(0) / len(sample), sample[1::2].count(0) / len(sample)
        if max(even, odd) > 0.2 and min(even, odd) < 0.05:
            return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"
