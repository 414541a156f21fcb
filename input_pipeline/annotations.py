"""Reads caption files in five formats, which are detected by content and parsed into a common row type.

Uses only the standard library, so `caption_jax.metrics` can read the same files without heavy imports.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from input_pipeline.errors import DataError, MissingFileError

ACCEPTED = """Accepted formats:
  CSV with a header: image,caption[,split] (quoting as in RFC 4180; one row per caption)
  JSON lines: {"image": "a.jpg", "caption": "..."} or {"image": "a.jpg", "captions": ["...", "..."]}, optionally "split"
  COCO captions JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
  Karpathy's JSON: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
  Flickr8k token.txt: a.jpg#0<tab>caption"""

IMAGE_FIELDS = ("image", "file_name", "filename")
CAPTION_FIELDS = ("caption", "captions", "text")
_TOKEN_LINE = re.compile(r"^(?P<image>[^\t]+)#\d+\t(?P<caption>.*)$")


@dataclasses.dataclass(slots=True)
class Row:
    """An image and some or all of its captions, from one entry of a caption file.

    Attributes:
        image: image file name as in the caption file; "" if the file has only an id.
        captions: may be empty, and may contain empty strings.
        split: split name as in the file; "" if missing.
        image_id: the id in the file, or the image name if there is none.
        folder: image subfolder as in the file; "" if missing.
        number: Karpathy's sequential image number (`imgid`); None if missing or if the file has a `cocoid`.
    """

    image: str
    captions: list[str]
    split: str
    image_id: str | int
    folder: str = ""
    number: int | None = None


def read_rows(
    path: Path, on_problem: Callable[[str, str], None], *, split_field: str = "", require_names: bool = True
) -> Iterator[Row]:
    """Reads a caption file in any accepted format.

    Args:
        path: the file.
        on_problem: called with the kind and a description of each entry that cannot be used.
        split_field: name of the split field; "" for the field `split`, if it exists.
        require_names: whether to report images without a file name as problems. If False (metrics use only ids), the
            rows of a COCO file follow the order of its annotations instead of its images.

    Raises:
        MissingFileError: the file does not exist.
        DataError: the file is not UTF-8, or not in an accepted format.
    """
    text = read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path} is empty. {ACCEPTED}")
    reader = _Reader(path, on_problem, split_field, require_names)
    if start in "{[":
        return reader.read_json(text)
    first_line = text.lstrip().split("\n", 1)[0].rstrip("\r")
    return reader.read_token_lines(text) if _TOKEN_LINE.match(first_line) else reader.read_csv(text)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file without its byte order mark. Raises MissingFileError or DataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8. {ACCEPTED}") from None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Parser for one file; the attributes are the arguments of `read_rows`."""

    path: Path
    on_problem: Callable[[str, str], None]
    split_field: str
    require_names: bool

    def read_csv(self, text: str) -> Iterator[Row]:
        """Yields the rows of a CSV file with a header and commas, tabs or semicolons between fields."""
        lines = io.StringIO(text, newline="")
        delimiter, header = self._parse_header(lines.readline())
        image, caption = _find_column(header, IMAGE_FIELDS), _find_column(header, CAPTION_FIELDS)
        split = _find_column(header, (self.split_field.lower() or "split",))
        if self.split_field and split is None:
            raise DataError(
                f"{self.path} has no column {self.split_field!r} (config.data.split_field); its columns are "
                f"{', '.join(header)}"
            )
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    location = f"{self.path}, line {reader.line_num + 1}"
                    problem = f"{location}: expected {len(header)} fields, got {len(fields)}; quote commas"
                    self.on_problem("malformed rows", problem)
                    continue
                name = fields[image].strip()
                yield Row(name, [fields[caption]], fields[split].strip() if split is not None else "", name)
        except csv.Error as error:
            raise DataError(f"{self.path}, line {reader.line_num + 1}: {error}. {ACCEPTED}") from None

    def _parse_header(self, line: str) -> tuple[str, list[str]]:
        """Returns the delimiter, which is detected from the header line, and the lower-case column names."""
        for delimiter in ",\t;":
            header = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
            if _find_column(header, IMAGE_FIELDS) is not None and _find_column(header, CAPTION_FIELDS) is not None:
                return delimiter, header
        raise DataError(f"unknown format of {self.path}, which starts with {line.strip()[:80]!r}. {ACCEPTED}")

    def read_token_lines(self, text: str) -> Iterator[Row]:
        """Yields the rows of a file in the format of Flickr8k's token.txt."""
        for line_number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _TOKEN_LINE.match(line)
            if match is None:
                self.on_problem("malformed rows", f"{self.path}, line {line_number}: expected name.jpg#0<tab>caption")
                continue
            yield Row(match["image"], [match["caption"]], "", match["image"])

    def read_json(self, text: str) -> Iterator[Row]:
        """Returns an iterator over the rows of a JSON or JSON lines file."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise DataError(f"{self.path}, line {error.lineno}: not valid JSON ({error.msg}). {ACCEPTED}") from None
            return self._read_objects(self._parse_json_lines(text))
        if isinstance(content, list):
            return self._read_objects(enumerate(content, 1))
        if isinstance(content, dict):
            images, annotations = _as_objects(content.get("images")), _as_objects(content.get("annotations"))
            if annotations is not None and (images is not None or not self.require_names):
                return self._read_coco(images or [], annotations)
            if images is not None:
                if any("sentences" in image for image in images):
                    return self._read_karpathy(images)
            elif _get_first(content, IMAGE_FIELDS) is not None:  # JSON lines with a single line
                return self._read_objects([(1, content)])
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"unknown JSON format of {self.path}, which contains {keys[:200]}. {ACCEPTED}")

    def _parse_json_lines(self, text: str) -> Iterator[tuple[int, Any]]:
        for line_number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                yield line_number, json.loads(line)
            except json.JSONDecodeError as error:
                self.on_problem("malformed rows", f"{self.path}, line {line_number}: not valid JSON ({error.msg})")

    def _read_objects(self, objects: Iterable[tuple[int, Any]]) -> Iterator[Row]:
        for number, item in objects:
            item = item if isinstance(item, dict) else {}
            image, captions = _get_first(item, IMAGE_FIELDS), _get_first(item, CAPTION_FIELDS)
            image_id = item.get("image_id", image)
            if image is None and not self.require_names and isinstance(image_id, int | str):
                image = ""
            captions = [captions] if isinstance(captions, str) else captions
            has_captions = isinstance(captions, list) and _are_strings(captions)
            if not isinstance(image, str) or not _is_id(image_id) or not has_captions:
                self.on_problem(
                    "malformed rows", f"{self.path}, object {number}: expected an image name and a caption or captions"
                )
                continue
            yield Row(image, captions, self._get_split(item), image_id)

    def _read_coco(self, images: list[dict], annotations: list[dict]) -> Iterator[Row]:
        rows: dict[Any, Row] = {}
        for image in images:
            name = image.get("file_name") or ""
            if not _is_id(image.get("id")) or not isinstance(name, str) or (self.require_names and not name):
                self.on_problem("malformed rows", f"{self.path}: image without id or file_name: {str(image)[:80]}")
            elif image["id"] not in rows:
                # COCO specifies the folder only in the URL: .../train2017/000000000009.jpg
                folder = str(image.get("coco_url", "")).split("/")[-2:-1]
                rows[image["id"]] = Row(name, [], self._get_split(image), image["id"], folder[0] if folder else "")
            elif self.require_names:
                self.on_problem("images listed twice", f"{self.path}: id {image['id']} ({image['file_name']})")
        captioned: dict[Any, Row] = {}
        for annotation in annotations:
            image_id = annotation.get("image_id")
            if not self.require_names and _is_id(image_id):
                rows.setdefault(image_id, Row("", [], "", image_id))
            row = rows.get(image_id) if _is_id(image_id) else None
            if row is None:
                self.on_problem("captions of unknown images", f"{self.path}: image id {image_id}")
            elif not isinstance(annotation.get("caption"), str):
                problem = f"{self.path}: annotation without caption (id {annotation.get('id')})"
                self.on_problem("malformed rows", problem)
            else:
                captioned.setdefault(image_id, row).captions.append(annotation["caption"])
        yield from (rows if self.require_names else captioned).values()

    def _read_karpathy(self, images: list[dict]) -> Iterator[Row]:
        for image in images:
            sentences = _as_objects(image.get("sentences", []))
            sentences = [None] if sentences is None else [sentence.get("raw") for sentence in sentences]
            name, folder = image.get("filename") or "", image.get("filepath") or ""
            image_id, number = image.get("cocoid", name), image.get("imgid")
            is_identified = name != "" or (not self.require_names and (image_id != "" or number is not None))
            if not is_identified or not _is_id(image_id) or not _are_strings([name, folder, *sentences]):
                problem = f"{self.path}: image without filename or raw sentences: {str(image)[:80]}"
                self.on_problem("malformed rows", problem)
                continue
            number = None if "cocoid" in image else number
            yield Row(name, sentences, self._get_split(image), image_id, folder, number)

    def _get_split(self, item: dict) -> str:
        return str(item.get(self.split_field or "split", "") or "")


def _find_column(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _get_first(item: dict, names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | float | str) and value == value  # JSON may contain NaN, which is not equal to itself


def _as_objects(items: Any) -> list[dict] | None:
    """Returns the objects in a JSON list, with {} for non-objects, or None if `items` is not a list."""
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else None


def _are_strings(values: list) -> bool:
    return all(isinstance(value, str) for value in values)
