"""Models given by name instead of by folder: `hf://owner/name` on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from caption_jax.errors import ConfigError, StorageError
from input_pipeline.extras import optional_packages

HUB_SCHEME = "hf://"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")


def is_named(source: str | os.PathLike[str]) -> bool:
    """Whether a source is the name of a model rather than a folder or a bucket."""
    return os.fspath(source).startswith(HUB_SCHEME)


def locate_model(source: str | os.PathLike[str]) -> str:
    """Returns the folder of a model, which is downloaded first if it is on the Hub.

    The Hub's client keeps downloads in its cache and checks for a new version each time; without a connection, the
    cached version is used. Use a revision, as in `hf://owner/name@revision`, for a model that cannot change.

    Args:
        source: name of a model; other sources are returned unchanged.

    Raises:
        ConfigError: the name is malformed.
        StorageError: the model cannot be downloaded.
        MissingPackageError: the client of the Hub is not installed.
    """
    source = os.fspath(source)
    if not is_named(source):
        return source
    repository, separator, revision = source.removeprefix(HUB_SCHEME).partition("@")
    check_repository(repository, source)
    if separator and not _REVISION.fullmatch(revision):
        raise ConfigError(f"{source}: the revision is malformed; write hf://owner/name@revision")
    return _download(repository, revision or None, source)


def check_repository(repository: str, value: str) -> None:
    """Raises ConfigError if the name of a repository on the Hub is malformed.

    Args:
        repository: the name.
        value: the value that contains it, for the message.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{value}: the name of a model on the Hub is owner/name, as in hf://owner/name")


def is_shared_copy(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is in the cache of the Hub's client, where no other files belong."""
    parts = Path(os.path.abspath(folder)).parts
    return "snapshots" in parts and any(part.startswith("models--") for part in parts)


def _download(repository: str, revision: str | None, source: str) -> str:
    with optional_packages(source):
        from huggingface_hub import snapshot_download

    try:
        return snapshot_download(repository, revision=revision, ignore_patterns=["*.md", "*.bin", "*.pt", "*.py"])
    except Exception as error:  # the client raises many types, mostly connection errors
        raise StorageError(f"{source} could not be downloaded: {describe_hub_error(error)}") from error


def describe_hub_error(error: Exception) -> str:
    """Returns the cause of an error of the Hub's client and its remedy, on one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"the Hub answers {status}: the model does not exist, or your access token does not permit this; check the "
            "name, and log in with `hf auth login` or set HF_TOKEN"
        )
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason[:300]}; check the connection, or pass a folder"
