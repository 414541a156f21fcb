"""Text files in UTF-8 or UTF-16, with or without a byte order mark, and their lines."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.errors import DataError
from input_pipeline.limits import DEFAULT_LIMITS
from input_pipeline.safe_open import read_file

# The marks of UTF-32 come first, because the one for little-endian starts with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_SAMPLE_BYTES = 4096
_MAX_NULLS = 0.01  # fraction of null bytes of text in UTF-8 above which a file is not text

# First bytes of files that people mistake for text files, because of their names.
_NOT_TEXT = {
    b"PK\x03\x04": "an Excel workbook or another zip archive; export or unpack it",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel workbook; export it as CSV",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ\0": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"PAR1": "a Parquet file; export it as CSV",
    b"SQLite format 3\0": "a database; export it as CSV",
    b"%PDF": "a PDF file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
# Lines as in `csv.reader`, which accepts "\r" as the end of a line.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")


def read_text(path: Path, max_bytes: int = DEFAULT_LIMITS.caption_file_bytes) -> str:
    """Returns the text of a file in UTF-8 or UTF-16 without its byte order mark.

    Windows programs write UTF-16. Without a byte order mark, it is recognised by the zero bytes of ASCII characters.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the path is not a regular file, is larger than `max_bytes`, is not a text file, or has another
            encoding.
    """
    data = read_file(path, max_bytes, "config.limits.caption_file_bytes")
    for start, kind in _NOT_TEXT.items():
        if data.startswith(start):
            raise DataError(f"{path} is not a text file but {kind}")
    encoding = detect_encoding(data)
    if encoding.startswith("utf-8") and data.count(0) > _MAX_NULLS * len(data):
        raise DataError(f"{path} is not a text file: it contains null bytes, the first on line {_find_null(data)}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} is not {name} text (byte {error.start}), see line {line}; save it as UTF-8") from None


def _find_null(data: bytes) -> int:
    return data.count(b"\n", 0, data.index(0)) + 1


def iterate_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text that are not blank, without line breaks, and their numbers from 1."""
    number, start = 0, 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        number += 1
        line = text[start:end]
        if line and not line.isspace():
            yield number, line.removesuffix("\r")
        start = end + 1


def iterate_csv_lines(text: str, start: int = 0) -> Iterator[str]:
    """Yields the lines of a text from a position on, with their line breaks, for `csv.reader`."""
    if "\r" in text:
        yield from (match[0] for match in _LINE.finditer(text, start) if match[0])
        return
    while end := text.find("\n", start) + 1:
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


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
