"""Caption files of five forms, told apart by content and read into rows of one kind: for training and for scoring.

Plain Python, so that `caption_jax.metrics` reads what training reads and still imports nothing heavy.
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

ACCEPTED = """Accepted forms:
  CSV with a header: image,caption[,split] (quoting as in RFC 4180; one row a caption)
  JSON lines: {"image": "a.jpg", "caption": "..."} or {"image": "a.jpg", "captions": ["...", "..."]}, optionally "split"
  COCO captions JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
  Karpathy's JSON: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
  Flickr8k token.txt: a.jpg#0<tab>caption"""

IMAGE_FIELDS = ("image", "file_name", "filename")
CAPTION_FIELDS = ("caption", "captions", "text")
_TOKEN_LINE = re.compile(r"^(?P<image>[^\t]+)#\d+\t(?P<caption>.*)$")


@dataclasses.dataclass(slots=True)
class Row:
    """One image and some or all of its captions, as one entry of a caption file states them.

    Attributes:
        image: name of the image file as the caption file spells it; "" where the file has only an id for it.
        captions: may be empty, and may hold empty ones.
        split: as the file spells it; "" where it names none.
        image_id: the file's own id, or the image name.
        folder: the subfolder of images that the file names, "" where it names none.
        number: Karpathy's running number of the image (`imgid`), where the file has no other id than the name.
    """

    image: str
    captions: list[str]
    split: str
    image_id: str | int
    folder: str = ""
    number: int | None = None


def read_rows(
    path: Path, note: Callable[[str, str], None], *, split_field: str = "", names_needed: bool = True
) -> Iterator[Row]:
    """Reads a caption file in any accepted form.

    Args:
        path: the file.
        note: called with the kind and the name of each problem, for parts of the file that cannot be used.
        split_field: name of the field that holds the split; "" for the field `split`, if there is one.
        names_needed: whether an image without a file name is a problem. Scores need ids only; the rows of a COCO file
            then come in the order of its annotations instead of its images.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file is not UTF-8, or in none of the accepted forms.
    """
    text = read_text(path)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path} is empty. {ACCEPTED}")
    reader = _Reader(path, note, split_field, names_needed)
    if start in "{[":
        return reader.json_rows(text)
    first_line = text.lstrip().split("\n", 1)[0].rstrip("\r")
    return reader.token_rows(text) if _TOKEN_LINE.match(first_line) else reader.csv_rows(text)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises MissingFileError or DataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8. {ACCEPTED}") from None


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one file; the attributes are the arguments of `read_rows`."""

    path: Path
    note: Callable[[str, str], None]
    split_field: str
    names_needed: bool

    def csv_rows(self, text: str) -> Iterator[Row]:
        """Rows of CSV with a header, separated by commas, tabs or semicolons."""
        lines = io.StringIO(text, newline="")
        delimiter, header = self._header(lines.readline())
        image, caption = _position(header, IMAGE_FIELDS), _position(header, CAPTION_FIELDS)
        split = _position(header, (self.split_field.lower() or "split",))
        if self.split_field and split is None:
            raise DataError(
                f"{self.path} has no column {self.split_field!r} (config.data.split_field); it has {', '.join(header)}"
            )
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    where = f"{self.path}, line {reader.line_num + 1}"
                    self.note("malformed rows", f"{where}: {len(fields)} fields, not {len(header)}; quote commas")
                    continue
                name = fields[image].strip()
                yield Row(name, [fields[caption]], fields[split].strip() if split is not None else "", name)
        except csv.Error as error:
            raise DataError(f"{self.path}, line {reader.line_num + 1}: {error}. {ACCEPTED}") from None

    def _header(self, line: str) -> tuple[str, list[str]]:
        """The delimiter that makes sense of the first line, and the names of the columns in lower case."""
        for delimiter in ",\t;":
            header = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
            if _position(header, IMAGE_FIELDS) is not None and _position(header, CAPTION_FIELDS) is not None:
                return delimiter, header
        raise DataError(f"{self.path} starts with {line.strip()[:80]!r}, which is no known form. {ACCEPTED}")

    def token_rows(self, text: str) -> Iterator[Row]:
        """Rows of Flickr8k's token.txt."""
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            match = _TOKEN_LINE.match(line)
            if match is None:
                self.note("malformed rows", f"{self.path}, line {number}: want name.jpg#0<tab>caption")
                continue
            yield Row(match["image"], [match["caption"]], "", match["image"])

    def json_rows(self, text: str) -> Iterator[Row]:
        """Rows of JSON and of JSON lines."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise DataError(f"{self.path}, line {error.lineno}: not valid JSON ({error.msg}). {ACCEPTED}") from None
            return self._object_rows(self._json_lines(text))
        if isinstance(content, list):
            return self._object_rows(enumerate(content, 1))
        if isinstance(content, dict):
            images, annotations = _objects(content.get("images")), _objects(content.get("annotations"))
            if annotations is not None and (images is not None or not self.names_needed):
                return self._coco_rows(images or [], annotations)
            if images is not None:
                if any("sentences" in image for image in images):
                    return self._karpathy_rows(images)
            elif _first(content, IMAGE_FIELDS) is not None:  # one line of JSON lines
                return self._object_rows([(1, content)])
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{self.path} is JSON of no known form (it has {keys[:200]}). {ACCEPTED}")

    def _json_lines(self, text: str) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                self.note("malformed rows", f"{self.path}, line {number}: not valid JSON ({error.msg})")

    def _object_rows(self, objects: Iterable[tuple[int, Any]]) -> Iterator[Row]:
        for number, item in objects:
            item = item if isinstance(item, dict) else {}
            image, captions = _first(item, IMAGE_FIELDS), _first(item, CAPTION_FIELDS)
            image_id = item.get("image_id", image)
            if image is None and not self.names_needed and isinstance(image_id, int | str):
                image = ""
            captions = [captions] if isinstance(captions, str) else captions
            usable = isinstance(image, str) and _is_id(image_id) and isinstance(captions, list) and _all_text(captions)
            if not usable:
                self.note(
                    "malformed rows", f"{self.path}, object {number}: want an image name and a caption or captions"
                )
                continue
            yield Row(image, captions, self._split_of(item), image_id)

    def _coco_rows(self, images: list[dict], annotations: list[dict]) -> Iterator[Row]:
        rows: dict[Any, Row] = {}
        for image in images:
            name = image.get("file_name") or ""
            if not _is_id(image.get("id")) or not isinstance(name, str) or not (name or not self.names_needed):
                self.note("malformed rows", f"{self.path}: an image without id or file_name: {str(image)[:80]}")
            elif image["id"] not in rows:
                # COCO says where an image lies only in its URL: .../train2017/000000000009.jpg
                folder = str(image.get("coco_url", "")).split("/")[-2:-1]
                rows[image["id"]] = Row(name, [], self._split_of(image), image["id"], folder[0] if folder else "")
            elif self.names_needed:
                self.note("images listed twice", f"{self.path}: id {image['id']} ({image['file_name']})")
        captioned: dict[Any, Row] = {}
        for annotation in annotations:
            image_id = annotation.get("image_id")
            if not self.names_needed and _is_id(image_id):
                rows.setdefault(image_id, Row("", [], "", image_id))
            row = rows.get(image_id) if _is_id(image_id) else None
            if row is None:
                self.note("captions of unknown images", f"{self.path}: image id {image_id}")
            elif not isinstance(annotation.get("caption"), str):
                self.note("malformed rows", f"{self.path}: an annotation without caption (id {annotation.get('id')})")
            else:
                captioned.setdefault(image_id, row).captions.append(annotation["caption"])
        yield from (rows if self.names_needed else captioned).values()

    def _karpathy_rows(self, images: list[dict]) -> Iterator[Row]:
        for image in images:
            sentences = _objects(image.get("sentences", []))
            sentences = [None] if sentences is None else [sentence.get("raw") for sentence in sentences]
            name, folder = image.get("filename") or "", image.get("filepath") or ""
            image_id, number = image.get("cocoid", name), image.get("imgid")
            identified = name != "" or (not self.names_needed and (image_id != "" or number is not None))
            if not identified or not _is_id(image_id) or not _all_text([name, folder, *sentences]):
                problem = f"{self.path}: an image without filename or raw sentences: {str(image)[:80]}"
                self.note("malformed rows", problem)
                continue
            number = None if "cocoid" in image else number
            yield Row(name, sentences, self._split_of(image), image_id, folder, number)

    def _split_of(self, item: dict) -> str:
        return str(item.get(self.split_field or "split", "") or "")


def _position(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _first(item: dict, names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | float | str) and value == value  # JSON has NaN, which equals nothing


def _objects(items: Any) -> list[dict] | None:
    """The objects of a JSON list, an empty one for anything else in it; None for what is no list."""
    return [item if isinstance(item, dict) else {} for item in items] if isinstance(items, list) else None


def _all_text(captions: list) -> bool:
    return all(isinstance(caption, str) for caption in captions)
