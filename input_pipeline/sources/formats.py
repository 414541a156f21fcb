"""Caption files of five kinds, told apart by what they hold, read into one kind of row."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from input_pipeline.records import DataError, Report

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
    """What a caption file says about one image, in one place of the file.

    Attributes:
        image: name of the image file as the caption file spells it.
        captions: may be empty, and may hold empty ones.
        split: as the file spells it; "" where it says nothing.
        image_id: the file's own id, or the image name.
        folder: the subfolder of images that the file names, "" where it names none.
    """

    image: str
    captions: list[str]
    split: str
    image_id: str | int
    folder: str = ""


def read_rows(path: Path, split_field: str, report: Report) -> list[Row]:
    """Reads a caption file in any accepted form.

    Args:
        path: the file.
        split_field: name of the field that holds the split; "" for the field `split`, where there is one.
        report: is told about parts of the file that cannot be used.

    Raises:
        DataError: the file is missing, is not UTF-8, or is in none of the accepted forms.
    """
    text = _text(path)
    start = text.lstrip()[:1]
    if not start:
        raise DataError(f"{path} is empty (config.data.captions). {ACCEPTED}")
    if start in "{[":
        return list(_json_rows(path, text, split_field, report))
    first_line = text.lstrip().split("\n", 1)[0].rstrip("\r")
    if _TOKEN_LINE.match(first_line):
        return list(_token_rows(path, text, report))
    return list(_csv_rows(path, text, split_field, report))


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Set config.data.root and config.data.captions.") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; config.data.captions names caption files.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8. {ACCEPTED}") from None


def _csv_rows(path: Path, text: str, split_field: str, report: Report) -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    header_line = lines.readline()
    for delimiter in ",\t;":
        header = [name.strip().lower() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
        image = _position(header, IMAGE_FIELDS)
        caption = _position(header, CAPTION_FIELDS)
        if image is not None and caption is not None:
            break
    else:
        raise DataError(f"{path} starts with {header_line.strip()[:80]!r}, which is no known form. {ACCEPTED}")
    split = _position(header, (split_field.lower() or "split",))
    if split_field and split is None:
        raise DataError(f"{path} has no column {split_field!r} (config.data.split_field); it has {', '.join(header)}")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                line = reader.line_num + 1
                report.add(
                    "malformed rows", f"{path}, line {line}: {len(fields)} fields, not {len(header)}; quote commas"
                )
                continue
            name = fields[image].strip()
            yield Row(name, [fields[caption]], fields[split].strip() if split is not None else "", name)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num + 1}: {error}. {ACCEPTED}") from None


def _position(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _token_rows(path: Path, text: str, report: Report) -> Iterator[Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _TOKEN_LINE.match(line)
        if match is None:
            report.add("malformed rows", f"{path}, line {number}: want name.jpg#0<tab>caption")
            continue
        yield Row(match["image"], [match["caption"]], "", match["image"])


def _json_rows(path: Path, text: str, split_field: str, report: Report) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}). {ACCEPTED}") from None
        yield from _object_rows(path, _json_lines(path, text, report), split_field, report)
        return
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        if isinstance(content.get("annotations"), list):
            yield from _coco_rows(path, content, split_field, report)
            return
        if any("sentences" in image for image in content["images"]):
            yield from _karpathy_rows(path, content, split_field, report)
            return
    elif isinstance(content, dict) and _first(content, IMAGE_FIELDS) is not None:  # one line of JSON lines
        yield from _object_rows(path, [(1, content)], split_field, report)
        return
    elif isinstance(content, list):
        yield from _object_rows(path, list(enumerate(content, 1)), split_field, report)
        return
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise DataError(f"{path} is JSON of no known form (it has {keys[:200]}). {ACCEPTED}")


def _json_lines(path: Path, text: str, report: Report) -> list[tuple[int, Any]]:
    objects = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            objects.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            report.add("malformed rows", f"{path}, line {number}: not valid JSON ({error.msg})")
    return objects


def _object_rows(path: Path, objects: list[tuple[int, Any]], split_field: str, report: Report) -> Iterator[Row]:
    for number, item in objects:
        image = _first(item, IMAGE_FIELDS) if isinstance(item, dict) else None
        captions = _first(item, CAPTION_FIELDS) if isinstance(item, dict) else None
        captions = [captions] if isinstance(captions, str) else captions
        usable = isinstance(image, str) and isinstance(captions, list) and all(isinstance(c, str) for c in captions)
        if not usable:
            report.add("malformed rows", f"{path}, object {number}: want an image name and a caption or captions")
            continue
        split = item.get(split_field or "split", "")
        yield Row(image, captions, str(split or ""), item.get("image_id", image))


def _coco_rows(path: Path, content: dict, split_field: str, report: Report) -> Iterator[Row]:
    rows: dict[Any, Row] = {}
    for image in content["images"]:
        if image.get("id") is None or not image.get("file_name"):
            report.add("malformed rows", f"{path}: an image without id or file_name: {str(image)[:80]}")
        elif image["id"] in rows:
            report.add("images listed twice", f"{path}: id {image['id']} ({image['file_name']})")
        else:
            # COCO says where an image lies only in its URL: .../train2017/000000000009.jpg
            folder = str(image.get("coco_url", "")).split("/")[-2:-1]
            split = str(image.get(split_field or "split", "") or "")
            rows[image["id"]] = Row(image["file_name"], [], split, image["id"], folder[0] if folder else "")
    for annotation in content["annotations"]:
        row = rows.get(annotation.get("image_id"))
        if row is None:
            report.add("captions of unknown images", f"{path}: image id {annotation.get('image_id')}")
        elif not isinstance(annotation.get("caption"), str):
            report.add("malformed rows", f"{path}: an annotation without caption (id {annotation.get('id')})")
        else:
            row.captions.append(annotation["caption"])
    yield from rows.values()


def _karpathy_rows(path: Path, content: dict, split_field: str, report: Report) -> Iterator[Row]:
    for image in content["images"]:
        sentences = [sentence.get("raw") for sentence in image.get("sentences", ())]
        if not image.get("filename") or not all(isinstance(sentence, str) for sentence in sentences):
            report.add("malformed rows", f"{path}: an image without filename or raw sentences: {str(image)[:80]}")
            continue
        name = image["filename"]
        split = str(image.get(split_field or "split", "") or "")
        yield Row(name, sentences, split, image.get("cocoid", name), image.get("filepath", ""))


def _first(item: dict, names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None)
