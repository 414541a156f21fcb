"""The rows of a caption file, and the settings and problems of reading it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.errors import DataError
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.terminal_text import escape_message

ACCEPTED = """Accepted formats:
  CSV with a header: image,caption[,split] (separated by commas, tabs, semicolons or pipes; one row per caption)
  JSON lines: {"image": "a.jpg", "caption": "..."} or {"image": "a.jpg", "captions": ["...", "..."]}, optionally "split"
  JSON by name: {"a.jpg": ["...", "..."], "b.jpg": ["..."]}
  COCO captions JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
  Karpathy's JSON: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
  Flickr8k token.txt: a.jpg#0<tab>caption"""


_MAX_SHOWN = 60  # characters of a value in a message
_PLAIN_NAME = re.compile(r"[\w .()/-]{1,40}")
# Halves of surrogate pairs. In names, U+DC80 to U+DCFF stand for bytes that are not valid UTF-8 (PEP 383).
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SURROGATE_IN_NAME = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


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


@dataclasses.dataclass
class CaptionFile:
    """A caption file that is being read; the attributes are the arguments of `read_rows`.

    Attributes:
        problems: number of entries that have been reported.
    """

    path: Path
    on_problem: Callable[[str, str], None]
    split_field: str = ""
    image_column: str = ""
    caption_column: str = ""
    require_names: bool = True
    limits: Limits = DEFAULT_LIMITS
    problems: int = 0

    def accepts(self, place: str, image: str | float, captions: Sequence[str] = ()) -> bool:
        """Returns whether the name or id of an image and its captions can be used; otherwise reports the reason."""
        reason = self.find_fault(image, captions)
        if reason:
            self.report(place, reason)
        return not reason

    def find_fault(self, image: str | float, captions: Sequence[str] = ()) -> str:
        """Returns why the name or id of an image, or one of its captions, cannot be used; "" if they can."""
        limits = self.limits
        if isinstance(image, str) and (len(image) > limits.name_characters or not image.isprintable()):
            fault = _find_text_fault("name", image, limits.name_characters, _SURROGATE_IN_NAME)
            if fault:
                return fault
        for caption in captions:
            if len(caption) > limits.caption_characters or not caption.isprintable():
                fault = _find_text_fault("caption", caption, limits.caption_characters, _SURROGATE)
                if fault:
                    return fault
        return ""

    def report(self, place: str, problem: str, kind: str = "malformed rows") -> None:
        """Reports an entry that cannot be used.

        Args:
            place: the entry, such as "line 3" or "record 3".
            problem: what was found and what is wanted.
            kind: entries of the same kind are listed together.

        Raises:
            DataError: so many entries cannot be used that this is probably not a caption file.
        """
        message = escape_message(f"{self.path}, {place}: {problem}")
        self.problems += 1
        if self.problems > self.limits.caption_file_problems:
            raise DataError(
                f"{self.path}: more than {self.problems - 1:,} entries cannot be used "
                f"(config.limits.caption_file_problems), such as {message}"
            )
        self.on_problem(kind, message)

    def report_value(self, place: str, name: str, value: Any, wanted: str) -> None:
        """Reports a value of the wrong type: `image is 3.5 (a number); wanted a file name`."""
        self.report(place, f"{name} is {describe_value(value)}; wanted {wanted}")


def _find_text_fault(kind: str, text: str, limit: int, surrogates: re.Pattern[str]) -> str:
    if len(text) > limit:
        return (
            f"a {kind} of {len(text):,} characters, more than the limit of {limit:,} (config.limits.{kind}_characters)"
        )
    if "\0" in text:
        return f"the {kind} contains a null character; remove it"
    match = surrogates.search(text)
    return f"the {kind} contains half of a character (U+{ord(match[0]):04X}); save the file as UTF-8" if match else ""


def describe_value(value: Any) -> str:
    """Returns a JSON value, shortened, with the name of its type: `[7] (a list)`."""
    if value is None:
        return "missing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kind = next(name for kind, name in kinds.items() if isinstance(value, kind))
    if isinstance(value, float) and not math.isfinite(value):
        kind = "not a finite number"
    return f"{shorten_value(value)} ({kind})"


def shorten_value(value: Any) -> str:
    """Returns the beginning of a JSON value, which may be nested deeply or be very long."""
    if isinstance(value, str):
        value = value[: _MAX_SHOWN + 1]
    text = ""
    for part in itertools.islice(json.JSONEncoder(ensure_ascii=False).iterencode(value), _MAX_SHOWN):
        text += part[: _MAX_SHOWN + 1]
        if len(text) > _MAX_SHOWN:
            return text[: _MAX_SHOWN - 3] + "..."
    return text


def shorten_name(value: str | float) -> str:
    """Returns a name or id in quotation marks, shortened."""
    is_long = isinstance(value, str) and len(value) > _MAX_SHOWN
    return repr(value[: _MAX_SHOWN - 3] + "..." if is_long else value)


def list_names(names: Sequence[Any]) -> str:
    """Lists the names of columns or fields; "" if they do not look like names.

    The first line of a file that is not a caption file, such as a file of passwords, must not appear in a message.
    """
    texts = [str(name).strip() for name in names]
    if not all(map(_PLAIN_NAME.fullmatch, texts)):
        return ""
    return ", ".join(map(repr, texts))[:300]
