"""Models given by name instead of by folder: `demo`, and `hf://owner/name` on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from caption_jax.errors import ConfigError, MissingFileError, StorageError
from input_pipeline.extras import optional_packages

DEMO = "demo"
HUB_SCHEME = "hf://"
_DEMO_FOLDER = Path(__file__).resolve().parent / "demo_model"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w./-]+")


def is_named(source: str | os.PathLike[str]) -> bool:
    """Whether a source is the name of a model rather than a folder or a bucket."""
    source = os.fspath(source)
    return source.startswith(HUB_SCHEME) or (source == DEMO and not os.path.exists(DEMO))


def locate_model(source: str | os.PathLike[str]) -> str:
    """Returns the folder of a model, which is downloaded first if it is on the Hub.

    `demo` is the small model in this package (`locate_demo`), unless there is a folder of that name.

    The Hub's client keeps downloads in its cache and checks for a new version each time; without a connection, the
    cached version is used. Use a revision, as in `hf://owner/name@revision`, for a model that cannot change.

    Args:
        source: name of a model; other sources are returned unchanged.

    Raises:
        ConfigError: the name is malformed.
        MissingFileError: the package was installed without the demo model.
        StorageError: the model cannot be downloaded.
        MissingPackageError: the client of the Hub is not installed.
    """
    source = os.fspath(source)
    if not is_named(source):
        return source
    if source == DEMO:
        return locate_demo()
    repository, separator, revision = source.removeprefix(HUB_SCHEME).partition("@")
    check_repository(repository, source)
    if separator and not _REVISION.fullmatch(revision):
        raise ConfigError(f"{source}: the revision is malformed; write hf://owner/name@revision")
    return _download(repository, revision or None, source)


def locate_demo() -> str:
    """Returns the folder of the demo model.

    Raises:
        MissingFileError: the package was installed without it.
    """
    if not _DEMO_FOLDER.is_dir():
        raise MissingFileError(f"{_DEMO_FOLDER} is missing: reinstall caption-jax, or pass the workdir of a run")
    return str(_DEMO_FOLDER)


def check_repository(repository: str, value: str) -> None:
    """Raises ConfigError if the name of a repository on the Hub is malformed.

    Args:
        repository: the name.
        value: the value that contains it, for the message.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{value}: the name of a model on the Hub is owner/name, as in hf://owner/name")


def is_shared_copy(folder: str | os.PathLike[str]) -> bool:
    """Whether others may use a folder: the demo, a copy in the cache of the Hub's client, or a model folder."""
    path = Path(os.path.abspath(folder))
    is_snapshot = "snapshots" in path.parts and any(part.startswith("models--") for part in path.parts)
    return is_snapshot or path == _DEMO_FOLDER or (path / "manifest.json").is_file()


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
