"""Local and bucket paths, and output of file names that are not valid UTF-8."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from etils import epath

from input_pipeline.extras import select_bucket_backend
from input_pipeline.files import is_on_bucket


def storage_path(path: str | os.PathLike[str]) -> epath.Path:
    """Converts a local path or bucket URL to an `epath.Path`, without making it absolute.

    Raises:
        MissingPackageError: the package that accesses the bucket is not installed.
    """
    select_bucket_backend(path)
    return epath.Path(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns an absolute path. Bucket paths are unchanged, because `resolve` would turn them into local paths.

    Raises:
        MissingPackageError: see `storage_path`.
    """
    path = storage_path(path)
    return path if is_on_bucket(path) else path.resolve()


def allow_undecodable_output() -> None:
    """Configures stdout to write file names that are not valid UTF-8 as their original bytes."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # absent if stdout is not a file, as in a notebook
    if reconfigure is not None:
        reconfigure(errors="surrogateescape")


def json_line(values: dict[str, Any]) -> str:
    """Serialises one JSON object, without a trailing newline."""
    text = json.dumps(values, ensure_ascii=False)
    # JSON must be valid UTF-8, so surrogates are written as ASCII escapes, which `json.loads` decodes.
    return text if text.isascii() or not _has_surrogates(text) else json.dumps(values)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
