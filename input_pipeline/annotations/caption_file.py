"""The rows of a caption file, and the settings and problems of reading it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCEPTED = """Accepted formats:
  CSV with a header: image,caption[,split] (separated by commas, tabs, semicolons or pipes; one row per caption)
  JSON lines: {"image": "a.jpg", "caption": "..."} or {"image": "a.jpg", "captions": ["...", "..."]}, optionally "split"
  JSON by name: {"a.jpg": ["...", "..."], "b.jpg": ["..."]}
  COCO captions JSON: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
  Karpathy's JSON: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}
  Flickr8k token.txt: a.jpg#0<tab>caption"""


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


@dataclasses.dataclass(frozen=True)
class CaptionFile:
    """A caption file that is being read; the attributes are the arguments of `read_rows`."""

    path: Path
    on_problem: Callable[[str, str], None]
    split_field: str = ""
    image_column: str = ""
    caption_column: str = ""
    require_names: bool = True

    def report(self, place: str, problem: str, kind: str = "malformed rows") -> None:
        """Reports an entry that cannot be used.

        Args:
            place: the entry, such as "line 3" or "record 3".
            problem: what was found and what is wanted.
            kind: entries of the same kind are listed together.
        """
        self.on_problem(kind, f"{self.path}, {place}: {problem}")

    def report_value(self, place: str, name: str, value: Any, wanted: str) -> None:
        """Reports a value of the wrong type: `image is 3.5 (a number); wanted a file name`."""
        self.report(place, f"{name} is {describe_value(value)}; wanted {wanted}")


def describe_value(value: Any) -> str:
    """Returns a JSON value, shortened, with the name of its type: `[7] (a list)`."""
    if value is None:
        return "missing"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    text = json.dumps(value, ensure_ascii=False)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kinds[type(value)]})"
