"""CSV files: a header, and fields separated by commas, tabs, semicolons or pipes."""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator

from input_pipeline.annotations.caption_file import ACCEPTED, CaptionFile, Row
from input_pipeline.annotations.encodings import iterate_csv_lines
from input_pipeline.annotations.fields import Fields, describe_unknown_fields, log_choice, resolve_fields
from input_pipeline.annotations.word_lists import CaptionParser
from input_pipeline.errors import DataError

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
_MAX_HEADER = 100_000  # characters; below the maximum length of a field of `csv.reader`
_MAX_NAME = 4096  # characters of an image name that is recognised as such
_IMAGE_NAME = re.compile(r"[^\"]+\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?|p[gnp]m|avif|hei[cf]|jp2)", re.IGNORECASE)


def read_delimited(file: CaptionFile, text: str, start: int, parser: CaptionParser) -> Iterator[Row]:
    """Yields the rows of a CSV file, quoted as in RFC 4180.

    Args:
        file: the file.
        text: its text.
        start: position of the header, after any blank lines.
        parser: parser of captions that are lists.

    Raises:
        DataError: the header has no known image or caption column, or lacks a column that the config names.
    """
    lines = iterate_csv_lines(text, start)
    number = len(text[:start].splitlines()) + 1
    header = next(lines)
    if header[:4].lower() == "sep=":  # written by Excel
        header, number = next(lines, ""), number + 1
    second = next(lines, "")
    delimiter, names, fields = _parse_header(header, second, file)
    log_choice(names, fields, file)
    lines = itertools.chain([second], lines) if second else lines
    return _read_rows(file, parser, _Records(file, lines, number, delimiter, len(names), fields.image), fields)


def _read_rows(file: CaptionFile, parser: CaptionParser, records: _Records, fields: Fields) -> Iterator[Row]:
    image, caption, split = fields.image, fields.caption, fields.split
    for number, values in records:
        name, text = values[image].strip(), values[caption]
        if fields.has_words or text[:1] == "[":
            place = f"line {number}"
            captions = parser.parse_one(text, are_words=True) if fields.has_words else parser.parse(text, place)
            if captions is None:
                file.report_value(place, "the caption", text, "text, or a list of texts")
                continue
        else:
            captions = [text]
        if fault := file.find_fault(name, captions):
            file.report(f"line {number}", fault)
            continue
        yield Row(name, captions, values[split].strip() if split is not None else "", name)


def _parse_header(line: str, second_line: str, file: CaptionFile) -> tuple[str, list[str], Fields]:
    """Returns the delimiter, which is detected from the header line, the column names and the known columns."""
    if len(line) > _MAX_HEADER:
        raise DataError(f"unknown format of {file.path}: its first line has {len(line):,} characters. {ACCEPTED}")
    best: tuple[str, list[str], Fields] | None = None
    for delimiter in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
        fields = resolve_fields(names, file)
        if fields.are_complete:
            if file.split_field and fields.split is None:
                raise DataError(
                    f"{file.path} has no column {file.split_field!r} (config.data.split_field); its columns are "
                    f"{', '.join(names)}"
                )
            return delimiter, names, fields
        if best is None or len(names) > len(best[1]):
            best = delimiter, names, fields
    delimiter, names, fields = best
    if len(names) <= 1 or second_line.count(delimiter) < len(names) - 1:
        raise DataError(
            f"unknown format of {file.path}: its first line is neither the header of a CSV file nor JSON. {ACCEPTED}"
        )
    hint = " (the file seems to have no header; add the line image,caption)" if _IMAGE_NAME.fullmatch(names[0]) else ""
    formats = "" if file.image_column or file.caption_column else f". {ACCEPTED}"
    raise DataError(f"{file.path}: {describe_unknown_fields(names, fields, file)}{hint}{formats}")


class _Records:
    """The records of a CSV file after the header, with the line numbers on which they start.

    `csv.reader` reads across lines inside quotation marks. If a quotation mark is not closed, it swallows the following
    rows, up to the next quotation mark or the end of the file. Such a row is reported by its own line, and reading
    continues on the next one.
    """

    def __init__(
        self, file: CaptionFile, lines: Iterator[str], number: int, delimiter: str, columns: int, image_column: int
    ):
        self.file = file
        self.delimiter = delimiter
        self.columns = columns
        self.image_column = image_column
        self._lines = lines
        self._number = number  # lines of the file that have been read
        self._pending: list[str] = []  # lines of the current record
        self._retry: deque[str] = deque()  # lines to read again

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        pending, columns = self._pending, self.columns
        while True:
            reader = csv.reader(self._feed(), delimiter=self.delimiter, strict=True, skipinitialspace=True)
            try:
                for values in reader:
                    if len(pending) > 1 and any(map(self._is_row, pending[1:])):
                        raise csv.Error("swallowed rows")  # a caption of several lines would not contain a row
                    number = self._number + 1
                    self._number += len(pending)
                    pending.clear()
                    if len(values) == columns or self._has_all_values(number, values):
                        yield number, values
                return
            except csv.Error as error:
                if (record := self._recover(error)) is not None:
                    yield record

    def _feed(self) -> Iterator[str]:
        append = self._pending.append
        while self._retry:
            append(line := self._retry.popleft())
            yield line
        for line in self._lines:
            append(line)
            yield line

    def _has_all_values(self, number: int, values: list[str]) -> bool:
        """Checks the number of fields. Rows of blanks and blank fields at the end, as from Excel, are accepted."""
        if not any(map(str.strip, values)):
            return False
        if len(values) > self.columns and not any(map(str.strip, values[self.columns :])):
            return True
        found = f"expected {self.columns} fields, got {len(values)}"
        if len(values) > self.columns:
            found += f'; put a caption that contains a {DELIMITERS[self.delimiter]} in quotation marks ("...")'
        self.file.report(f"line {number}", found)
        return False

    def _recover(self, error: csv.Error) -> tuple[int, list[str]] | None:
        """Reports the first line of an invalid record, or reads it literally, and returns to the line after it."""
        first, *rest = self._pending
        self._retry.extendleft(reversed(rest))
        self._pending.clear()
        self._number += 1
        values = [value.strip() for value in first.split(self.delimiter)]
        if self.delimiter in "\t|" and first.count('"') % 2 == 0 and len(values) == self.columns:
            return self._number, values  # these files are rarely quoted: a caption may start with a quoted word
        if "field limit" in str(error) and len(first) > csv.field_size_limit():
            problem = f"a field of more than {csv.field_size_limit():,} characters"
        elif first.count('"') % 2:
            problem = 'a quotation mark is not closed; write a quotation mark inside a caption twice ("")'
        else:
            problem = 'text before or after a quoted field; write quotation marks inside a caption twice ("")'
        self.file.report(f"line {self._number}", problem)
        return None

    def _is_row(self, line: str) -> bool:
        values = line.split(self.delimiter)
        if len(values) < self.columns:
            return False
        name = values[self.image_column]
        return len(name) <= _MAX_NAME and bool(_IMAGE_NAME.fullmatch(name.strip(' "')))
