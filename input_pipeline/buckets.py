"""The client of a bucket, `gs://` or `s3://`."""

from __future__ import annotations

import os
from typing import Any

from input_pipeline.extras import BUCKET_CLIENTS, require, select_bucket_backend

_MAX_REASON = 300  # characters of an error message


def bucket_client(path: str | os.PathLike[str]) -> Any:
    """Returns fsspec's file system of a bucket, which is created once per process and thread-safe.

    Args:
        path: a URL on the bucket.

    Raises:
        MissingPackageError: gcsfs or s3fs is not installed.
    """
    select_bucket_backend(path)
    scheme = os.fspath(path).partition("://")[0]
    require(os.fspath(path), BUCKET_CLIENTS[scheme])
    import fsspec

    return fsspec.filesystem(scheme)


def describe_bucket_error(error: Exception) -> str:
    """Returns the type and the message of an error of a bucket's client, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]
