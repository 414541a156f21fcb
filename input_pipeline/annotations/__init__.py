"""Caption files in six formats, which are detected by content and parsed into a common row type.

Uses only the standard library, so `caption_jax.metrics` can read the same files without heavy imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from input_pipeline.annotations.caption_file import ACCEPTED, CaptionFile, Row
from input_pipeline.annotations.delimited import read_delimited
from input_pipeline.annotations.encodings import read_text
from input_pipeline.annotations.json_formats import read_json
from input_pipeline.annotations.word_lists import CaptionParser
from input_pipeline.errors import DataError

__all__ = ["ACCEPTED", "Row", "read_rows", "read_text"]

_BLANK_LINES = re.compile(r"(?:[ \t]*(?:\r\n|\n|\r))*")
_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")


def read_rows(
    path: Path,
    on_problem: Callable[[str, str], None],
    *,
    split_field: str = "",
    image_column: str = "",
    caption_column: str = "",
    require_names: bool = True,
) -> Iterator[Row]:
    """Reads a caption file in any accepted format.

    Args:
        path: the file.
        on_problem: called with the kind and a description of each entry that cannot be used. The description names the
            file and the line or record.
        split_field: name of the split column or field; "" for `split`, if it exists.
        image_column: name of the CSV column or JSON field with the image; "" for the first name in `IMAGE_FIELDS`.
        caption_column: name of the CSV column or JSON field with the captions; "" for the first in `CAPTION_FIELDS`.
        require_names: whether to report images without a file name as problems. If False (metrics use only ids), the
            rows of a COCO file follow the order of its annotations instead of its images, and JSON records with an
            `error` instead of a caption are images without captions.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the file is not UTF-8 or UTF-16, is not in an accepted format, or has no column with a known name.
    """
    text = read_text(path)
    start = _BLANK_LINES.match(text).end()
    first_line = text[start : start + 4096].split("\n", 1)[0].rstrip("\r")
    if not first_line.strip():
        raise DataError(f"{path} is empty. {ACCEPTED}")
    file = CaptionFile(path, on_problem, split_field, image_column, caption_column, require_names)
    if _TOKEN_LINE.fullmatch(first_line):
        return _read_token_lines(file, text)
    parser = CaptionParser(file)
    is_json = first_line.lstrip()[0] in "{["
    return parser.finish(read_json(file, text, parser) if is_json else read_delimited(file, text, start, parser))


def _read_token_lines(file: CaptionFile, text: str) -> Iterator[Row]:
    """Yields the rows of a file in the format of Flickr8k's token.txt."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            file.report(f"line {number}", f"expected name.jpg#0<tab>caption, got {line[:60]!r}")
            continue
        yield Row(match["image"], [match["caption"]], "", match["image"])
