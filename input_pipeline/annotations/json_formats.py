"""JSON caption files: JSON lines, lists of objects, captions by name, and the formats of COCO and Karpathy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from input_pipeline.annotations.caption_file import ACCEPTED, CaptionFile, Row
from input_pipeline.annotations.fields import (
    IMAGE_FIELDS,
    Fields,
    describe_unknown_fields,
    log_choice,
    normalize,
    resolve_fields,
)
from input_pipeline.annotations.word_lists import CaptionParser
from input_pipeline.errors import DataError

_NAME = "a file name"
_ID = "a number or text"
_CAPTIONS = "text, or a list of texts"
# Keys of the published formats, which are never names of images.
_RESERVED_KEYS = {"images", "annotations", "info", "licenses", "categories", "dataset", "type"}


def read_json(file: CaptionFile, text: str, parser: CaptionParser) -> Iterator[Row]:
    """Returns an iterator over the rows of a JSON or JSON lines file.

    Raises:
        DataError: the file is not valid JSON, or has none of the accepted formats.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise DataError(f"{file.path}, line {error.lineno}: not valid JSON ({error.msg}). {ACCEPTED}") from None
        return _read_objects(file, _parse_json_lines(file, text), parser)
    except RecursionError:
        raise DataError(f"{file.path}: not a caption file (lists within lists within lists). {ACCEPTED}") from None
    rows = None
    if isinstance(content, list):
        rows = _read_objects(file, _number_records(content), parser)
    elif isinstance(content, dict):
        rows = _read_object_of_records(file, content, parser)
    if rows is not None:
        return rows
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise DataError(f"unknown JSON format of {file.path}, which contains {keys[:200]}. {ACCEPTED}")


def _read_object_of_records(file: CaptionFile, content: dict, parser: CaptionParser) -> Iterator[Row] | None:
    """Returns an iterator over the rows of a file that is one JSON object; None if its format is unknown."""
    images, annotations = content.get("images"), content.get("annotations")
    if isinstance(annotations, list) and (isinstance(images, list) or not file.require_names):
        return _read_coco(file, images if isinstance(images, list) else [], annotations, parser)
    if isinstance(images, list):
        records = [image for image in images if isinstance(image, dict)]
        if any("sentences" in record for record in records):
            return _read_karpathy(file, images, parser)
        if any(resolve_fields(list(record), file).are_complete for record in records):
            return _read_objects(file, _number_records(images), parser)
    elif _is_record(content, file):  # JSON lines with a single line
        return _read_objects(file, [("line 1", content)], parser)
    elif _are_captions_by_name(content):
        return _read_by_name(file, content, parser)
    return None


def _number_records(records: list) -> Iterator[tuple[str, Any]]:
    return ((f"record {number}", record) for number, record in enumerate(records, 1))


def _parse_json_lines(file: CaptionFile, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            file.report(f"line {number}", f"not valid JSON ({getattr(error, 'msg', 'too many lists')})")


def _is_record(content: dict, file: CaptionFile) -> bool:
    image = resolve_fields(list(content), file).image
    return image is not None and isinstance(list(content.values())[image], str | int)


def _read_objects(file: CaptionFile, objects: Iterable[tuple[str, Any]], parser: CaptionParser) -> Iterator[Row]:
    """Yields the rows of JSON objects. The fields are looked up once for each set of keys."""
    known: dict[tuple[str, ...], Fields] = {}
    for place, item in objects:
        if not isinstance(item, dict):
            file.report_value(place, "the record", item, 'an object: {"image": "a.jpg", "caption": "..."}')
            continue
        keys = tuple(item)
        fields = known.get(keys)
        if fields is None:
            fields = known[keys] = resolve_fields(keys, file)
            log_choice(keys, fields, file)
        has_id_only = fields.image is None and not file.require_names and "image_id" in item
        has_failed = "error" in item and not file.require_names  # written by `caption --format=jsonl`
        if (fields.caption is None and not has_failed) or (fields.image is None and not has_id_only):
            file.report(place, describe_unknown_fields(keys, fields, file, "field"))
            continue
        row = _read_object(file, place, item, fields, parser)
        if row is not None:
            yield row


def _read_object(file: CaptionFile, place: str, item: dict, fields: Fields, parser: CaptionParser) -> Row | None:
    keys = tuple(item)
    key = "image_id" if fields.image is None else keys[fields.image]
    name = to_name(item[key])
    image_id = item.get("image_id", name)
    if key == "image_id" and not file.require_names:
        name = ""
    if name is None:
        return file.report_value(place, key, item[key], _NAME)
    if not is_id(image_id):
        return file.report_value(place, "image_id", image_id, _ID)
    if fields.caption is None:
        return Row(name, [], "", image_id)
    key = keys[fields.caption]
    captions = parser.parse_one(item[key], are_words=True) if fields.has_words else parser.parse(item[key], place)
    if captions is None:
        return file.report_value(place, key, item[key], _CAPTIONS)
    split = "" if fields.split is None else str(item[keys[fields.split]] or "").strip()
    return Row(name, captions, split, image_id)


def _are_captions_by_name(content: dict) -> bool:
    is_reserved = not _RESERVED_KEYS.isdisjoint(content)
    return not is_reserved and any(isinstance(value, str | list | dict) for value in content.values())


def _read_by_name(file: CaptionFile, content: dict[str, Any], parser: CaptionParser) -> Iterator[Row]:
    """Yields the rows of an object whose keys are image names or ids, and whose values are captions."""
    for number, (name, value) in enumerate(content.items(), 1):
        place = f"record {number} ({name!r})"
        captions = parser.parse_one(value) if isinstance(value, dict) else parser.parse(value, place)
        if captions is None:
            file.report_value(place, "the value", value, _CAPTIONS)
            continue
        yield Row(name, captions, _get_split(file, value) if isinstance(value, dict) else "", name)


def _read_coco(file: CaptionFile, images: list, annotations: list, parser: CaptionParser) -> Iterator[Row]:
    rows: dict[Any, Row] = {}
    for number, image in enumerate(images, 1):
        place = f"record {number} of images"
        if to_name(image) is not None:
            image = {"id": image, "file_name": image}  # captions may refer to images by name
        row = _read_coco_image(file, place, image)
        if row is not None and rows.setdefault(row.image_id, row) is not row and file.require_names:
            file.report(place, f"id {row.image_id} ({row.image})", kind="images listed twice")
    known_ids = _describe_ids(images, rows)
    captioned: dict[Any, Row] = {}
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation, dict):
            file.report_value(f"record {number} of annotations", "the record", annotation, "an object")
            continue
        image_id, caption = annotation.get("image_id"), annotation.get("caption")
        if not is_id(image_id):
            file.report_value(f"record {number} of annotations", "image_id", image_id, _ID)
            continue
        if not file.require_names:
            rows.setdefault(image_id, Row("", [], "", image_id))
        row = rows.get(image_id)
        captions = [caption] if isinstance(caption, str) else parser.parse_one(caption)
        if row is None:
            problem = f"image id {image_id!r}, but {known_ids}"
            file.report(f"record {number} of annotations", problem, kind="captions of unknown images")
        elif captions is None:
            file.report_value(f"record {number} of annotations", "caption", caption, "text")
        else:
            captioned.setdefault(image_id, row).captions.extend(captions)
    yield from (rows if file.require_names else captioned).values()


def _describe_ids(images: list, rows: dict[Any, Row]) -> str:
    ids = ", ".join(map(repr, itertools.islice(rows, 3)))
    if images and not any(isinstance(image, dict) for image in images):
        return f'the images are plain names ({ids}); wanted objects {{"id": 1, "file_name": "a.jpg"}}'
    return f"the ids of the images are {ids}{', ...' * (len(rows) > 3)}" if rows else "there are no images with ids"


def _read_coco_image(file: CaptionFile, place: str, image: Any) -> Row | None:
    if not isinstance(image, dict):
        return file.report_value(place, "the record", image, "an object with id and file_name")
    image_id, name = image.get("id"), _find_name(image)
    if not is_id(image_id):
        return file.report_value(place, "id", image_id, _ID)
    if to_name(name) is None and (name is not None or file.require_names):
        return file.report_value(place, "file_name", name, _NAME)
    # COCO specifies the folder only in the URL: .../train2017/000000000009.jpg
    folder = str(image.get("coco_url", "")).split("/")[-2:-1]
    return Row(to_name(name) or "", [], _get_split(file, image), image_id, folder[0] if folder else "")


def _read_karpathy(file: CaptionFile, images: list, parser: CaptionParser) -> Iterator[Row]:
    for number, image in enumerate(images, 1):
        row = _read_karpathy_image(file, f"record {number} of images", image, parser)
        if row is not None:
            yield row


def _read_karpathy_image(file: CaptionFile, place: str, image: Any, parser: CaptionParser) -> Row | None:
    if not isinstance(image, dict):
        return file.report_value(place, "the record", image, "an object with filename and sentences")
    value, folder, sentences = _find_name(image), image.get("filepath") or "", image.get("sentences", [])
    name = to_name(value) or ""
    image_id, number = image.get("cocoid", name), image.get("imgid")
    is_identified = name != "" or (not file.require_names and (image_id != "" or number is not None))
    if not is_identified:
        return file.report_value(place, "filename", value, _NAME)
    if not is_id(image_id):
        return file.report_value(place, "cocoid", image_id, _ID)
    if not isinstance(folder, str):
        return file.report_value(place, "filepath", folder, "a folder name")
    captions = parser.parse(sentences, place)
    if captions is None:
        return file.report_value(place, "sentences", sentences, 'a list of objects with "raw", or of texts')
    return Row(name, captions, _get_split(file, image), image_id, folder, None if "cocoid" in image else number)


def _find_name(image: dict) -> Any:
    """Returns the file name of an image of COCO's or Karpathy's format, which may have another known name."""
    for key in ("file_name", "filename"):
        if image.get(key) not in (None, ""):
            return image[key]
    known = {normalize(name) for name in IMAGE_FIELDS if name != "image_id"}
    return next((value for key, value in image.items() if normalize(str(key)) in known and value != ""), None)


def _get_split(file: CaptionFile, item: dict) -> str:
    return str(item.get(file.split_field or "split", "") or "").strip()


def to_name(value: Any) -> str | None:
    """Returns a file name. A whole number is a name without its extension: 1 for `1.jpg`. None for other types."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        return None
    if isinstance(value, int | float):
        return str(int(value))
    return value.strip() or None if isinstance(value, str) else None


def is_id(value: Any) -> bool:
    """Whether a JSON value can identify an image. NaN, which JSON may contain, cannot: it is not equal to itself."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and value == value
