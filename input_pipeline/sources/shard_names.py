"""The shards of a `webdataset` or `parquet` dataset: patterns with braces and `*`, and the split of each shard."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from input_pipeline.buckets import bucket_client, relative_names
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import ConfigError, DataError
from input_pipeline.files import is_on_bucket
from input_pipeline.records import Report
from input_pipeline.safe_open import DataRoot
from input_pipeline.sources.caption_files import find_split
from input_pipeline.sources.data_folder import find_root

if TYPE_CHECKING:
    from etils import epath

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_NAMES = 100_000  # from the braces of one pattern


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file with many images.

    Attributes:
        path: the file.
        name: its name relative to the folder of the dataset, for messages and ids.
        split: its split; "" if neither the config nor its name specifies one.
    """

    path: Path | epath.Path
    name: str
    split: str


def find_shards(spec: DataSpec, suffix: str, report: Report) -> list[Shard]:
    """Returns the shards of a dataset, in the order of the splits and patterns, and by name within a pattern.

    Without patterns in `config.data.shards`, these are all files with the suffix in `root` and its subfolders. If the
    names of some of them specify a split, the others are training shards.

    Args:
        spec: `config.data`.
        suffix: suffix of the shards, such as ".tar".
        report: receives shards that a pattern names but that do not exist, and links that must not be followed.

    Raises:
        DataError: a pattern matches no file, or two splits share a shard.
        ConfigError: the braces of a pattern are wrong, or there is no access to the bucket.
    """
    root = find_root(spec, "shards")
    patterns = {split: pattern for split, pattern in dataclasses.asdict(spec.shards).items() if pattern}
    if patterns:
        matches = [
            (name, split) for split, pattern in patterns.items() for name in _match(root, split, pattern, report)
        ]
    else:
        names = _glob(root, f"**/*{suffix}")
        if not names:
            raise DataError(f"no *{suffix} files in {root}; set config.data.root or config.data.shards")
        matches = [(name, find_split(name)) for name in names]
        if any(split for _, split in matches):
            matches = [(name, split or "train") for name, split in matches]
    split_by_name: dict[str, str] = {}
    for name, split in matches:
        if split_by_name.setdefault(name, split) != split:
            raise DataError(
                f"{root / name} is a shard of both {split_by_name[name]} and {split}: change config.data.shards so "
                "that each shard belongs to one split"
            )
    named = any(os.path.isabs(pattern) or ".." in Path(pattern).parts for pattern in patterns.values())
    return _check_links(split_by_name, DataRoot(root, (), "follow" if named else spec.outside_files), report)


def _check_links(split_by_name: dict[str, str], data_root: DataRoot, report: Report) -> list[Shard]:
    shards = []
    for name, split in split_by_name.items():
        path = data_root.folder / name
        if is_on_bucket(path) or data_root.admits(name, path):
            shards.append(Shard(path, name.replace(os.sep, "/"), split))
        else:
            report.add("shards outside of the folder of the dataset (config.data.outside_files)", name)
    return shards


def _glob(root: Path | epath.Path, pattern: str) -> list[str]:
    """Returns the files that match a pattern, relative to `root`, in order."""
    if not is_on_bucket(root):
        return sorted(glob.glob(pattern, root_dir=root, recursive=True))
    return relative_names(root, bucket_client(root).glob(f"{root}/{pattern}"))


def _match(root: Path | epath.Path, split: str, pattern: str, report: Report) -> list[str]:
    key = f"config.data.shards.{split}"
    names: list[str] = []
    missing: list[str] = []
    for name in expand_braces(pattern, key):
        if glob.has_magic(name):
            names += _glob(root, name)
        elif (root / name).exists():
            names.append(name)
        else:
            missing.append(name)
    if not names:
        raise DataError(f"no file in {root} matches {pattern!r} ({key})")
    report.extend("missing shards", (f"{root / name} ({key})" for name in missing))
    return names


def expand_braces(pattern: str, key: str) -> list[str]:
    """Returns the names that the braces of a pattern stand for, in order.

    `a-{008..010}.tar` stands for three names, and `{train,restval}.tar` for two. Patterns without braces are unchanged.

    Args:
        pattern: the pattern.
        key: its config key, for error messages.

    Raises:
        ConfigError: the braces do not match, a range is empty, or there are too many names.
    """
    match = _BRACES.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise ConfigError(f"{key} is {pattern!r}; each {{ needs a }}, as in train-{{0000..0039}}.tar")
        return [pattern]
    numbers = _RANGE.fullmatch(match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < _MAX_NAMES:
            raise ConfigError(f"{key} is {pattern!r}; {{{match[1]}}} must have 1 to {_MAX_NAMES:,} numbers")
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    expanded = (expand_braces(pattern[: match.start()] + choice + pattern[match.end() :], key) for choice in choices)
    names = list(itertools.islice(itertools.chain.from_iterable(expanded), _MAX_NAMES + 1))
    if len(names) > _MAX_NAMES:
        raise ConfigError(f"{key} is {pattern!r}; its braces stand for more than {_MAX_NAMES:,} names")
    return names
