"""The images of a `folder` dataset while it is opened: entries of caption files, and the files that they refer to."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from input_pipeline.annotations import Row
from input_pipeline.records import MAX_LISTED, Report
from input_pipeline.safe_open import DataRoot, describe_kind
from input_pipeline.sources.folder_listing import LINK, SPECIAL, FolderListings, list_files
from input_pipeline.sources.name_index import BESIDE_CAPTIONS, MatchCounts, NameIndex
from input_pipeline.sources.split_names import SPLIT_NAMES

log = logging.getLogger(__name__)


class FolderImage:
    """What the caption files contain about one image, plus its file and split."""

    __slots__ = ("captions", "folder", "hint", "image_id", "is_dropped", "is_exact", "name", "path", "source", "split")

    def __init__(self, row: Row, source: Path, hint: str):
        self.name = row.image
        self.image_id = row.image_id
        self.folder = row.folder
        self.source = source  # caption file
        self.hint = hint  # split of the caption file
        self.captions: list[str] = []
        self.split = ""  # from a split file or field
        self.path: Path | None = None
        self.is_exact = True  # whether the path is written as in the caption file
        self.is_dropped = False

    def set_split(self, name: str, report: Report) -> None:
        """Sets the split to the value of a split field."""
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            report.add("unknown split names", f"{name!r} of {self.name} (expected {', '.join(SPLIT_NAMES)})")
            self.is_dropped = True
        elif self.split and self.split != split:
            report.add("images in two splits", f"{self.name}: {self.split} and {split}")
            self.is_dropped = True
        else:
            self.split = split


def collect_images(rows: Iterable[Row], source: Path, hint: str, report: Report) -> list[FolderImage]:
    """Collects the rows of one caption file by image id. Ids count within their file.

    Args:
        rows: the rows of the file.
        source: the file.
        hint: the split of the file; "" if it does not specify one.
        report: receives ids with several names, and images in two splits.
    """
    images: dict[str | int, FolderImage] = {}
    for row in rows:
        image = images.get(row.image_id)
        if image is None:
            image = images[row.image_id] = FolderImage(row, source, hint)
        elif image.name != row.image:
            report.add("one image id for two files", f"{row.image_id}: {image.name} and {row.image}")
            continue
        if row.split:
            image.set_split(row.split, report)
        image.captions += row.captions
    return list(images.values())


def find_files(images: Iterable[FolderImage], folder: Path, data_root: DataRoot, report: Report) -> None:
    """Sets the path of each image whose file exists. `report_missing` reports the others.

    A file is searched for in the image folder, and then in the folder of the caption file. Names that do not exist as
    they are written are matched by `NameIndex`, which lists all subfolders. One line of the log reports how the names
    differ from the files.

    Args:
        images: the images.
        folder: the image folder.
        data_root: decides about files outside of the dataset.
        report: receives files that are not regular files, names that fit several files, and files outside of the
            dataset that must not be read.
    """
    search = _FileSearch(folder, data_root, report)
    for image in images:
        if image.name:
            search.find(image)
    if search.counts:
        log.info("image names: %s", search.counts)


class _FileSearch:
    """Finds the files of images; see `find_files`."""

    def __init__(self, folder: Path, data_root: DataRoot, report: Report):
        self.counts = MatchCounts()
        self._folder, self._data_root, self._report = folder, data_root, report
        self._listings = FolderListings()

    @functools.cached_property
    def _index(self) -> NameIndex:
        return NameIndex(list_files(self._folder))

    def find(self, image: FolderImage) -> None:
        """Sets the path of an image, or drops the image and reports why its file cannot be used."""
        folder = self._folder
        folders = (folder, folder / image.folder) if image.folder else (folder,)
        refusals: list[str] = []
        for parent in (*folders, image.source.parent):
            path = self._check(image, parent / image.name, refusals)
            if path is not None:
                image.path = path
                if parent not in folders:
                    self.counts.add(image.name, os.path.relpath(path, folder), (BESIDE_CAPTIONS,))
                return
            if image.is_dropped:
                return
        self._find_similar(image, refusals)
        if image.path is None and not image.is_dropped and refusals:
            image.is_dropped = True
            self._report.add(refusals[0], image.name)

    def _check(self, image: FolderImage, path: Path, refusals: list[str]) -> Path | None:
        """Returns the path if the file exists and may be read; adds the reason to `refusals` if it must not be read."""
        if ".." in image.name or ".." in image.folder:
            path = self._data_root.normalise(path)
            if path is None:
                refusals.append("paths that leave the folder of the dataset")
                return None
        kind = self._listings.get_kind(path)
        if kind == SPECIAL:
            image.is_dropped = True
            self._report.add(
                "files that are not regular files", f"{image.name} is {describe_kind(os.stat(path).st_mode)}"
            )
        if kind in ("", SPECIAL):
            return None
        if not self._data_root.admits(image.name, path, is_link=kind == LINK):
            refusals.append("files outside of the folder of the dataset (config.data.outside_files)")
            return None
        return path

    def _find_similar(self, image: FolderImage, refusals: list[str]) -> None:
        find = self._index.find
        names = [f"{image.folder}/{image.name}", image.name] if image.folder else [image.name]
        match = next((match for name in names if len((match := find(name)).paths) == 1), find(image.name))
        if len(match.paths) == 1:
            path = self._folder / match.paths[0]
            if self._check(image, path, refusals) is not None:
                image.path, image.is_exact = path, False
                self.counts.add(image.name, match.paths[0], match.differences)
        elif match.paths:
            image.is_dropped = True
            _report_ambiguous(image.name, match.paths, self._report)


def _report_ambiguous(name: str, paths: tuple[str, ...], report: Report) -> None:
    folders = [path.rpartition("/")[0] or "." for path in paths]
    if len(set(folders)) == len(paths):
        report.add("images in several folders", f"{name}: {', '.join(folders)}")
    else:
        report.add("names that fit several files", f"{name}: {', '.join(paths)}")


def report_missing(images: Iterable[FolderImage], folder: Path, report: Report) -> None:
    """Drops and reports images without a file. The first ones are listed with the nearest file that exists."""
    missing = [image for image in images if image.path is None and not image.is_dropped]
    index = NameIndex(list_files(folder)) if missing else None
    for number, image in enumerate(missing):
        image.is_dropped = True
        nearest = index.find_nearest(image.name) if number < MAX_LISTED else ""
        report.add("missing images", f"{image.name} (the nearest file is {nearest})" if nearest else image.name)


def merge_files(images: Iterable[FolderImage], report: Report) -> list[FolderImage]:
    """Merges images of several caption files that have the same file, and reports those within one caption file.

    Missing files are the same if they have the same name.
    """
    first_by_file: dict[Path | tuple[str, str], FolderImage] = {}
    for image in images:
        key = image.path or (image.folder, image.name)
        first = first_by_file.setdefault(key, image)
        if first is image:
            continue
        if first.source != image.source:
            _merge(first, image, report)
        elif first.name == image.name:
            report.add("images listed twice", f"{image.name}: ids {first.image_id} and {image.image_id}")
        else:
            report.add("two names for one file", f"{image.path.name}: {first.name!r} and {image.name!r}")
            if image.is_exact:  # keep the name that is written as the file
                first_by_file[key] = image
    return list(first_by_file.values())


def _merge(image: FolderImage, other: FolderImage, report: Report) -> None:
    image.captions += other.captions
    image.is_dropped |= other.is_dropped
    if image.hint != other.hint:
        hints = f"caption files of {image.hint or '?'} and {other.hint or '?'}"
        report.add("images in two splits", f"{image.name}: {hints}")
        image.is_dropped = True
    if other.split:
        image.set_split(other.split, report)


def make_ids_unique(images: Iterable[FolderImage], folder: Path) -> None:
    """Replaces the ids of caption files that use the same ids for different images by paths in the image folder."""
    sources: dict[str | int, set[Path]] = {}
    for image in images:
        sources.setdefault(image.image_id, set()).add(image.source)
    restarted = {source for group in sources.values() if len(group) > 1 for source in group}
    if not restarted:
        return
    log.info(
        "The ids in %s restart from file to file: these images are identified by their paths.",
        " and ".join(sorted(path.name for path in restarted)),
    )
    for image in images:
        if image.source in restarted:
            image.image_id = os.path.relpath(image.path, folder).replace(os.sep, "/") if image.path else image.name
