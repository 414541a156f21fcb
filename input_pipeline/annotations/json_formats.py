"""JSON caption files: JSON lines, lists of objects, captions by name, and the formats of COCO and Karpathy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

from input_pipeline.annotations.caption_file import ACCEPTED, CaptionFile, Row, list_names, shorten_name
from input_pipeline.annotations.encodings import iterate_lines
from input_pipeline.annotations.fields import (
    IMAGE_FIELDS,
    Fields,
    describe_unknown_fields,
    log_choice,
    normalize,
    resolve_fields,
)
from input_pipeline.annotations.json_text import JsonError, find_repeated_key, parse_json
from input_pipeline.annotations.word_lists import CaptionParser
from input_pipeline.errors import DataError

_NAME = "a file name"
_ID = "a number or text"
_CAPTIONS = "text, or a list of texts"
_SPLIT = "the name of a split"
_MAX_CACHED = 1000  # sets of keys whose fields are known
# Keys of the published formats, which are never names of images.
_RESERVED_KEYS = {"images", "annotations", "info", "licenses", "categories", "dataset", "type"}


def read_json(file: CaptionFile, text: str, parser: CaptionParser) -> Iterator[Row]:
    """Returns an iterator over the rows of a JSON or JSON lines file.

    Raises:
        DataError: the file is not valid JSON, or has none of the accepted formats.
    """
    if _has_json_lines(file, text):
        return _read_objects(file, _parse_json_lines(file, text), parser)
    try:
        content = parse_json(text, file.limits.json_values)
    except JsonError as error:
        if error.has_more or _has_object_on_second_line(file, text):
            return _read_objects(file, _parse_json_lines(file, text), parser)
        raise DataError(f"{file.path}, line {error.line}: not valid JSON ({error.reason}). {ACCEPTED}") from None
    rows = None
    if isinstance(content, list):
        rows = _read_objects(file, _number_records(content), parser)
    elif isinstance(content, dict):
        rows = _read_object_of_records(file, content, parser)
    if rows is not None:
        return rows
    keys = list_names(list(content)) if isinstance(content, dict) else ""
    found = f", which contains {keys}" if keys else ""
    raise DataError(f"unknown JSON format of {file.path}{found}. {ACCEPTED}")


def _has_json_lines(file: CaptionFile, text: str) -> bool:
    """Whether the first line is a complete JSON value, and there is another line."""
    lines = [line for _, line in itertools.islice(iterate_lines(text), 2)]
    return len(lines) == 2 and _is_object(lines[0], file)


def _has_object_on_second_line(file: CaptionFile, text: str) -> bool:
    """Whether a file that is not valid JSON consists of JSON lines, of which the first is damaged."""
    lines = [line for _, line in itertools.islice(iterate_lines(text), 2)]
    return len(lines) == 2 and lines[0].lstrip().startswith("{") and _is_object(lines[1], file)


def _is_object(line: str, file: CaptionFile) -> bool:
    try:
        return isinstance(parse_json(line, file.limits.json_values), dict | list)
    except JsonError:
        return False


def _read_object_of_records(file: CaptionFile, content: dict, parser: CaptionParser) -> Iterator[Row] | None:
    """Returns an iterator over the rows of a file that is one JSON object; None if its format is unknown."""
    repeated = find_repeated_key(content)
    if repeated is not None:
        raise DataError(
            f"{file.path}: the key {shorten_name(repeated)} occurs twice with different values; write all captions of "
            "an image in one list"
        )
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
    for number, line in iterate_lines(text):
        try:
            yield f"line {number}", parse_json(line, file.limits.json_values)
        except JsonError as error:
            file.report(f"line {number}", f"not valid JSON ({error.reason})")


def _is_record(content: dict, file: CaptionFile) -> bool:
    image = resolve_fields(list(content), file).image
    return image is not None and isinstance(list(content.values())[image], str | int)


def _read_objects(file: CaptionFile, objects: Iterable[tuple[str, Any]], parser: CaptionParser) -> Iterator[Row]:
    """Yields the rows of JSON objects. The fields are looked up once for each set of keys."""
    known: dict[tuple[str, ...], Fields] = {}
    for place, item in objects:
        if type(item) is not dict:
            _report_record(file, place, item, 'an object: {"image": "a.jpg", "caption": "..."}')
            continue
        keys = tuple(item)
        fields = known.get(keys)
        if fields is None:
            fields = resolve_fields(keys, file)
            if not known:
                log_choice(keys, fields, file)
            if len(known) < _MAX_CACHED:
                known[keys] = fields
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
        return Row(name, [], "", image_id) if file.accepts(place, name or image_id) else None
    key = keys[fields.caption]
    captions = parser.parse_one(item[key], are_words=True) if fields.has_words else parser.parse(item[key], place)
    if captions is None:
        return file.report_value(place, key, item[key], _CAPTIONS)
    split = "" if fields.split is None else to_split(item[keys[fields.split]])
    if split is None:
        return file.report_value(place, keys[fields.split], item[keys[fields.split]], _SPLIT)
    is_accepted = file.accepts(place, name, captions) and file.accepts(place, image_id)
    return Row(name, captions, split, image_id) if is_accepted else None


def _report_record(file: CaptionFile, place: str, item: Any, wanted: str) -> None:
    """Reports a record that is not an object, or in which a key occurs twice (`parse_json`)."""
    key = find_repeated_key(item)
    if key is None:
        file.report_value(place, "the record", item, wanted)
    else:
        file.report(place, f"the key {shorten_name(key)} occurs twice with different values")


def _are_captions_by_name(content: dict) -> bool:
    is_reserved = not _RESERVED_KEYS.isdisjoint(content)
    return not is_reserved and any(isinstance(value, str | list | dict) for value in content.values())


def _read_by_name(file: CaptionFile, content: dict[str, Any], parser: CaptionParser) -> Iterator[Row]:
    """Yields the rows of an object whose keys are image names or ids, and whose values are captions."""
    for number, (name, value) in enumerate(content.items(), 1):
        place = f"record {number} ({shorten_name(name)})"
        captions = parser.parse_one(value) if isinstance(value, dict) else parser.parse(value, place)
        if captions is None:
            file.report_value(place, "the value", value, _CAPTIONS)
            continue
        split = _get_split(file, place, value) if isinstance(value, dict) else ""
        if split is not None and file.accepts(place, name, captions):
            yield Row(name, captions, split, name)


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
        image_id, captions = _read_coco_caption(file, number, annotation, parser)
        if captions is None:
            continue
        if not file.require_names:
            rows.setdefault(image_id, Row("", [], "", image_id))
        if image_id in rows:
            captioned.setdefault(image_id, rows[image_id]).captions.extend(captions)
        else:
            problem = f"image id {shorten_name(image_id)}, but {known_ids}"
            file.report(f"record {number} of annotations", problem, kind="captions of unknown images")
    yield from (rows if file.require_names else captioned).values()


def _read_coco_caption(
    file: CaptionFile, number: int, annotation: Any, parser: CaptionParser
) -> tuple[Any, list[str] | None]:
    """Returns the image id and the captions of an annotation. No captions, and reports why, if they cannot be used."""
    place = f"record {number} of annotations"
    if type(annotation) is not dict:
        _report_record(file, place, annotation, "an object")
        return None, None
    image_id, caption = annotation.get("image_id"), annotation.get("caption")
    if not is_id(image_id):
        file.report_value(place, "image_id", image_id, _ID)
        return None, None
    captions = [caption] if isinstance(caption, str) else parser.parse_one(caption)
    if captions is None:
        file.report_value(place, "caption", caption, "text")
    return image_id, captions if captions and file.accepts(place, image_id, captions) else None


def _describe_ids(images: list, rows: dict[Any, Row]) -> str:
    ids = ", ".join(map(shorten_name, itertools.islice(rows, 3)))
    if images and not any(isinstance(image, dict) for image in images):
        return f'the images are plain names ({ids}); wanted objects {{"id": 1, "file_name": "a.jpg"}}'
    return f"the ids of the images are {ids}{', ...' * (len(rows) > 3)}" if rows else "there are no images with ids"


def _read_coco_image(file: CaptionFile, place: str, image: Any) -> Row | None:
    if type(image) is not dict:
        return _report_record(file, place, image, "an object with id and file_name")
    image_id, name = image.get("id"), _find_name(image)
    if not is_id(image_id):
        return file.report_value(place, "id", image_id, _ID)
    if to_name(name) is None and (name is not None or file.require_names):
        return file.report_value(place, "file_name", name, _NAME)
    # COCO specifies the folder only in the URL: .../train2017/000000000009.jpg
    url = image.get("coco_url")
    folder = url.split("/")[-2:-1] if isinstance(url, str) else []
    row = Row(to_name(name) or "", [], _get_split(file, place, image), image_id, folder[0] if folder else "")
    is_accepted = row.split is not None and all(file.accepts(place, text) for text in (row.image, image_id, row.folder))
    return row if is_accepted else None


def _read_karpathy(file: CaptionFile, images: list, parser: CaptionParser) -> Iterator[Row]:
    for number, image in enumerate(images, 1):
        row = _read_karpathy_image(file, f"record {number} of images", image, parser)
        if row is not None:
            yield row


def _read_karpathy_image(file: CaptionFile, place: str, image: Any, parser: CaptionParser) -> Row | None:
    if type(image) is not dict:
        return _report_record(file, place, image, "an object with filename and sentences")
    value, folder, sentences = _find_name(image), image.get("filepath") or "", image.get("sentences", [])
    name = to_name(value) or ""
    image_id, number = image.get("cocoid", name), image.get("imgid")
    is_identified = name != "" or (not file.require_names and (image_id != "" or number is not None))
    if not is_identified:
        return file.report_value(place, "filename", value, _NAME)
    if not is_id(image_id):
        return file.report_value(place, "cocoid", image_id, _ID)
    if number is not None and not is_id(number):
        return file.report_value(place, "imgid", number, "a number")
    if not isinstance(folder, str):
        return file.report_value(place, "filepath", folder, "a folder name")
    captions = parser.parse(sentences, place)
    if captions is None:
        return file.report_value(place, "sentences", sentences, 'a list of objects with "raw", or of texts')
    row = Row(name, captions, _get_split(file, place, image), image_id, folder, None if "cocoid" in image else number)
    is_accepted = (
        row.split is not None
        and file.accepts(place, name, captions)
        and all(file.accepts(place, text) for text in (image_id, folder))
    )
    return row if is_accepted else None


def _find_name(image: dict) -> Any:
    """Returns the file name of an image of COCO's or Karpathy's format, which may have another known name."""
    for key in ("file_name", "filename"):
        if image.get(key) not in (None, ""):
            return image[key]
    known = {normalize(name) for name in IMAGE_FIELDS if name != "image_id"}
    return next((value for key, value in image.items() if normalize(str(key)) in known and value != ""), None)


def _get_split(file: CaptionFile, place: str, item: dict) -> str | None:
    """Returns the name of the split; None, and reports it, if it is neither text nor a number."""
    key = file.split_field or "split"
    split = to_split(item.get(key))
    return file.report_value(place, key, item[key], _SPLIT) if split is None else split


def to_split(value: Any) -> str | None:
    """Returns the name of a split; "" for an empty value, and None for a list or an object."""
    if isinstance(value, list | dict):
        return None if value else ""
    return str(value or "").strip()


def to_name(value: Any) -> str | None:
    """Returns a file name. A whole number is a name without its extension: 1 for `1.jpg`. None for other types."""
    if isinstance(value, int | float):
        return str(int(value)) if is_id(value) and int(value) == value else None
    return value.strip() or None if isinstance(value, str) else None


def is_id(value: Any) -> bool:
    """Whether a JSON value can identify an image: text, or a finite number of at most 64 bits if it is an integer."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
