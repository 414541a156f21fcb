"""Files in a bucket, `gs://` or `s3://`, through the client of fsspec."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from input_pipeline.errors import ConfigError, UserError
from input_pipeline.extras import BUCKET_CLIENTS, require, select_bucket_backend

_MAX_REASON = 300  # characters of an error message
# Scheme -> how to give the client access.
REMEDIES = {
    "gs": "that the credentials (`gcloud auth application-default login`) have the permissions of {role}",
    "s3": (
        "that the environment has the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and, "
        "for other stores than Amazon's, AWS_ENDPOINT_URL, and that they may {actions} objects"
    ),
}


def bucket_client(path: str | os.PathLike[str]) -> Any:
    """Returns fsspec's file system of a bucket, which is created once per process and thread-safe.

    Args:
        path: a URL in the bucket.

    Raises:
        ConfigError: the scheme is neither `gs://` nor `s3://`.
        MissingPackageError: gcsfs or s3fs is not installed.
    """
    url = os.fspath(path)
    scheme = url.partition("://")[0]
    if scheme not in BUCKET_CLIENTS:
        raise ConfigError(f"{url}: there is no client for {scheme}://; use a local path, gs:// or s3://")
    require(url, BUCKET_CLIENTS[scheme])
    select_bucket_backend(url)
    import fsspec

    return fsspec.filesystem(scheme)


def check_access(folder: str | os.PathLike[str], key: str) -> bool:
    """Returns whether a folder in a bucket has files.

    Args:
        folder: URL of the folder.
        key: config key or flag of the folder, for the message.

    Raises:
        ConfigError: there is no access to the bucket.
        MissingPackageError: see `bucket_client`.
    """
    url = os.fspath(folder)
    client, scheme = bucket_client(url), url.partition("://")[0]
    try:
        return bool(client.ls(url, detail=False))
    except FileNotFoundError:
        return False
    except Exception as error:  # each client raises its own types
        remedy = REMEDIES[scheme].format(role="roles/storage.objectViewer", actions="list and read")
        raise ConfigError(
            f"{key}={url}: {BUCKET_CLIENTS[scheme]} cannot access the bucket ({describe_bucket_error(error)}): check "
            f"its name, and {remedy}"
        ) from error


def list_files_below(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of all files in a folder and its subfolders, relative to the folder, in order.

    A folder that does not exist is empty.
    """
    return _list_names(folder, bucket_client(folder).find(os.fspath(folder), detail=True))


def list_files_in(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the files in a folder, in order. A folder that does not exist is empty."""
    try:
        entries = bucket_client(folder).ls(os.fspath(folder), detail=True)
    except FileNotFoundError:
        return []
    return _list_names(folder, {entry["name"]: entry for entry in entries})


def _list_names(folder: str | os.PathLike[str], entries: dict[str, dict[str, Any]]) -> list[str]:
    files = [name for name, entry in entries.items() if entry["type"] == "file" and not name.endswith("/")]
    return relative_names(folder, files)


def relative_names(folder: str | os.PathLike[str], paths: Iterable[str]) -> list[str]:
    """Returns the names of files relative to a folder, in order, from the paths that a client returns."""
    prefix = os.fspath(folder).partition("://")[2].rstrip("/") + "/"
    names = (path.lstrip("/") for path in paths)
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def stat_file(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the size of a file in bytes, and its modification time in nanoseconds.

    Raises:
        OSError: the file does not exist, or cannot be read.
    """
    client = bucket_client(path)
    with _os_errors(path):
        return client.size(os.fspath(path)), int(client.modified(os.fspath(path)).timestamp() * 1e9)


def download(path: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Writes a file to a local path. Raises OSError; see `stat_file`."""
    with _os_errors(path):
        bucket_client(path).get_file(os.fspath(path), os.fspath(target))


def read_range(path: str | os.PathLike[str], start: int, stop: int) -> bytes:
    """Returns the bytes of a file from `start` to before `stop`, or to its end if that is earlier.

    The client repeats requests that fail, with increasing pauses.

    Raises:
        OSError: the file does not exist, is empty, or cannot be read.
    """
    with _os_errors(path):
        return bucket_client(path).cat_file(os.fspath(path), start=start, end=stop)


def open_ranges(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading, without reading ahead: each call of `read` is one request. Raises OSError."""
    with _os_errors(path):
        return bucket_client(path).open(os.fspath(path), "rb", cache_type="none")


@contextlib.contextmanager
def _os_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Converts the errors of a client, which has its own types, to OSError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise OSError(f"{os.fspath(path)} cannot be read ({describe_bucket_error(error)})") from error


def describe_bucket_error(error: Exception) -> str:
    """Returns the type and the message of an error of a bucket's client, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]


@dataclasses.dataclass(frozen=True, slots=True)
class BucketImage:
    """An encoded image that is a file in a bucket.

    Attributes:
        url: the file.
        max_bytes: maximum size; of a larger file, one byte more is read, so that it is reported as too large.
    """

    url: str
    max_bytes: int

    def __call__(self) -> bytes:
        """Returns the encoded image. Raises OSError; see `read_range`."""
        return read_range(self.url, 0, self.max_bytes + 1)
