"""Names of files: paths made absolute, and lines of output, whatever bytes the names are made of."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from etils import epath

from input_pipeline.files import is_on_bucket


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """An absolute path; one on a bucket is already, and `resolve` would make a local one of it."""
    return epath.Path(path) if is_on_bucket(path) else epath.Path(path).resolve()


def pass_any_file_name() -> None:
    """Lets a file's name that is no UTF-8 leave through the standard output as the bytes it came as."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def json_line(values: dict[str, Any]) -> str:
    """One JSON object, without the line's end."""
    text = json.dumps(values, ensure_ascii=False)
    # JSON is UTF-8: a name that is not is written with escapes, which Python's reader turns into the same name.
    return text if text.isascii() or not _has_surrogates(text) else json.dumps(values)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
