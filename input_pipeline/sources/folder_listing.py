"""The files in the folders of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.buckets import list_files_below, list_files_in
from input_pipeline.files import is_on_bucket

FILE, LINK, SPECIAL = "file", "link", "special"


class FolderListings:
    """Names of files by folder. Each folder is listed once, which is faster than one stat per file on network disks."""

    def __init__(self):
        self._kinds: dict[str, dict[str, str]] = {}

    def get_kind(self, path: Path) -> str:
        """Returns what a path is.

        "file" is a regular file, "link" a link to one, "special" a pipe, socket or device or a link to one, and "" a
        folder, a link to nothing, or nothing.
        """
        parent = os.path.dirname(path)
        kinds = self._kinds.get(parent)
        if kinds is None:
            kinds = self._kinds[parent] = _list_kinds(parent)
        return kinds.get(path.name, "")


def _list_kinds(folder: str) -> dict[str, str]:
    if is_on_bucket(folder):
        return dict.fromkeys(list_files_in(folder), FILE)
    try:
        with os.scandir(folder) as entries:
            return {entry.name: kind for entry in entries if (kind := _get_kind(entry))}
    except (OSError, ValueError):  # no such folder, no permission, or not a valid name
        return {}


def _get_kind(entry: os.DirEntry[str]) -> str:
    if entry.is_file(follow_symlinks=False):
        return FILE
    if entry.is_dir():
        return ""
    if not entry.is_symlink():
        return SPECIAL
    return LINK if entry.is_file() else SPECIAL if os.path.exists(entry.path) else ""


def list_files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files in a folder and its subfolders, relative to the folder and separated by slashes.

    Files and folders whose names start with a dot are omitted. Links to folders are followed once.
    """
    if is_on_bucket(folder):
        yield from (name for name in list_files_below(folder) if not f"/{name}".count("/."))
        return
    visited = set()
    pending = [""]
    while pending:  # without recursion, because folders can be nested more deeply than calls
        prefix = pending.pop()
        path = os.path.join(folder, prefix)
        real = os.path.realpath(path)
        if real in visited:
            continue
        visited.add(real)
        subfolders = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        subfolders.append(f"{prefix}{entry.name}/")
                    else:
                        yield prefix + entry.name
        except OSError:  # no permission, or the path is too long
            continue
        pending += sorted(subfolders, reverse=True)
