"""The output folder of a bulk run: its manifest, which later starts must agree with, its lock and its summary.

Names that start with an underscore are ignored by readers of Parquet folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caption_jax.bulk.work_units import Unit
from caption_jax.errors import ConfigError, LockedError, WorkdirError
from caption_jax.retrieval.index_format import ModelIdentity
from input_pipeline.files import delete_stale_temporaries, is_on_bucket, storage_path, write_atomically

MANIFEST = "_manifest.json"
SUMMARY = "_summary.json"
_FORMAT = "caption-jax bulk captions"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the Parquet files of a folder are made of.

    Attributes:
        model: the model.
        settings: values that the content of the files depends on, by flag or config key, in JSON.
        units: name, digest and version of each unit, in the order of the files. Folders of earlier releases have no
            versions, but "".
    """

    model: ModelIdentity
    settings: Mapping[str, Any]
    units: Sequence[tuple[str, str, str]]

    @classmethod
    def create(cls, model: ModelIdentity, settings: Mapping[str, Any], units: Sequence[Unit]) -> Manifest:
        """Creates the manifest of a run."""
        described = [(unit.name, unit.digest(), unit.version) for unit in units]
        return cls(model, json.loads(json.dumps(settings)), described)

    def find_difference(self, other: Manifest) -> str:
        """Returns how the manifest of a folder differs from that of a command, `other`; "" if it does not."""
        if self.model != other.model:
            return f"the model ({self.model}), not {other.model}"
        for name in sorted({*self.settings, *other.settings}):
            before, now = self.settings.get(name), other.settings.get(name)
            if before != now:
                return f"{name}={_format(before)}, not {_format(now)}"
        if len(self.units) != len(other.units):
            return f"{len(self.units):,} shards or groups of images, not {len(other.units):,}"
        for (name, digest, version), (other_name, other_digest, other_version) in zip(
            self.units, other.units, strict=True
        ):
            if name != other_name:
                return f"the input {name} where there is now {other_name}"
            if digest != other_digest:
                return f"another version of {name}, or of the images that follow it"
            if version and version != other_version:
                return f"another version of {name}, which has been written again since"
        return ""


def _format(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def locked_folder(folder: str, manifest: Manifest) -> Iterator[None]:
    """Creates an output folder, or continues one with the same manifest. No other process can write to it meanwhile.

    In a bucket, there is no lock.

    Raises:
        ConfigError: the folder holds captions of other inputs, settings or of another model, or other files.
        LockedError: another process is writing to the folder.
    """
    storage_path(folder).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if not is_on_bucket(folder):
            stack.enter_context(_lock(os.path.join(folder, "_lock"), folder))
            delete_stale_temporaries(folder)
        if (storage_path(folder) / MANIFEST).exists():
            difference = read_manifest(folder).find_difference(manifest)
            if difference:
                raise ConfigError(
                    f"{folder} was written with {difference}: use the same to continue it, or set --out to a new folder"
                )
        else:
            if any(not path.name.startswith("_") for path in storage_path(folder).iterdir()):
                raise ConfigError(f"{folder} has other files: set --out to a new folder")
            content = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(manifest)}
            write_atomically(f"{folder}/{MANIFEST}", json.dumps(content, indent=1) + "\n")
        yield


def is_output_folder(folder: str) -> bool:
    """Returns whether a folder holds the output of a bulk run."""
    return (storage_path(folder) / MANIFEST).exists()


def read_manifest(folder: str) -> Manifest:
    """Reads the manifest of a folder. Raises WorkdirError if it is damaged or has another version."""
    path = f"{folder}/{MANIFEST}"
    try:
        content = json.loads(storage_path(path).read_text())
        if (content["format"], content["version"]) != (_FORMAT, _VERSION):
            raise WorkdirError(f"{path} has version {content['version']}, but this release reads {_VERSION}")
        units = [(str(name), str(digest), "".join(version)) for name, digest, *version in content["units"]]
        return Manifest(ModelIdentity(**content["model"]), content["settings"], units)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, WorkdirError):
            raise
        raise WorkdirError(f"{path} is damaged: set --out to a new folder") from error


def write_summary(folder: str, summary: Mapping[str, Any]) -> None:
    """Writes the file that says that the run is complete."""
    write_atomically(f"{folder}/{SUMMARY}", json.dumps(summary, indent=1) + "\n")


@contextlib.contextmanager
def _lock(path: str, folder: str) -> Iterator[None]:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process exits, even if it is killed
        yield
    except BlockingIOError:
        raise LockedError(f"another process is writing to {folder}: wait until it finishes") from None
    finally:
        os.close(file)
