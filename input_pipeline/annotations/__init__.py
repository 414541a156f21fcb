"""Caption files in six formats, which are detected by content and parsed into a common row type.

Uses only the standard library, so `caption_jax.metrics` can read the same files without heavy imports.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from input_pipeline.annotations.caption_file import ACCEPTED, CaptionFile, Row
from input_pipeline.annotations.delimited import read_delimited
from input_pipeline.annotations.encodings import iterate_lines, read_text
from input_pipeline.annotations.json_formats import read_json
from input_pipeline.annotations.word_lists import CaptionParser
from input_pipeline.errors import DataError
from input_pipeline.limits import DEFAULT_LIMITS, Limits

__all__ = ["ACCEPTED", "Row", "iterate_lines", "read_rows", "read_text"]

_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")


def read_rows(
    path: Path,
    on_problem: Callable[[str, str], None],
    *,
    split_field: str = "",
    image_column: str = "",
    caption_column: str = "",
    require_names: bool = True,
    limits: Limits = DEFAULT_LIMITS,
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
        limits: `config.limits`. Entries that exceed them are reported as problems.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the file is too large, is not UTF-8 or UTF-16, is not in an accepted format, or has no column with a
            known name.
    """
    text = read_text(path, limits.caption_file_bytes)
    not_blank = _NOT_BLANK.search(text)
    if not_blank is None:
        raise DataError(f"{path} is empty. {ACCEPTED}")
    start = max(text.rfind("\n", 0, not_blank.start()), text.rfind("\r", 0, not_blank.start())) + 1
    first_line = text[start : start + 4096].split("\n", 1)[0].rstrip("\r")
    file = CaptionFile(path, on_problem, split_field, image_column, caption_column, require_names, limits)
    if _TOKEN_LINE.fullmatch(first_line):
        return _limit(_read_token_lines(file, text), file)
    parser = CaptionParser(file)
    rows = read_json(file, text, parser) if not_blank[0] in "{[" else read_delimited(file, text, start, parser)
    return parser.finish(_limit(rows, file))


def _limit(rows: Iterator[Row], file: CaptionFile) -> Iterator[Row]:
    """Yields rows up to the maximum number; more of them raise an error."""
    for number, row in enumerate(rows):
        if number == file.limits.caption_file_records:
            raise DataError(
                f"{file.path} has more than {number:,} records; split the file, or raise "
                "config.limits.caption_file_records"
            )
        yield row


def _read_token_lines(file: CaptionFile, text: str) -> Iterator[Row]:
    """Yields the rows of a file in the format of Flickr8k's token.txt."""
    for number, line in iterate_lines(text):
        place = f"line {number}"
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            file.report(place, f"expected name.jpg#0<tab>caption, got {line[:60]!r}")
        elif file.accepts(place, match["image"], [match["caption"]]):
            yield Row(match["image"], [match["caption"]], "", match["image"])
