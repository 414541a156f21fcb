"""Units of work of a bulk run: shards, and groups of image files. Each unit becomes one Parquet file."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from caption_jax.errors import ConfigError, MissingPackageError
from caption_jax.inference.caption_files import find_images
from input_pipeline.extras import select_bucket_backend
from input_pipeline.files import is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES
from input_pipeline.sources.shard_names import expand_braces

IMAGES = "images"
_SHARDS = {
    "tar": re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz))$"),
    "parquet": re.compile(r"\.parquet$"),
    "arrow": re.compile(r"\.arrow$"),
    "array_record": re.compile(r"\.array_?record(-\d+-of-\d+)?$"),
}
# What the library `datasets` keeps of its functions in a folder of `save_to_disk`: the same images again, or indices.
_CACHED_RESULT = re.compile(r"cache-.*\.arrow$")
_VERSION_FIELDS = ("ETag", "etag", "updated", "LastModified", "created")  # of an object, in the clients of fsspec


@dataclasses.dataclass(frozen=True)
class Unit:
    """Images that one worker captions, and whose captions are one Parquet file.

    Attributes:
        kind: "tar", "parquet", "arrow" or "array_record" for a shard, `IMAGES` for image files.
        paths: absolute paths or URLs: the shard, or the image files.
        size: size of the shard in bytes; 0 for image files, and for a shard that does not exist.
        version: modification time of the shard in nanoseconds, or its ETag on a bucket; "" where `size` is 0. The time
            of an image file is a column of the output instead, because millions of files would be looked at.
    """

    kind: str
    paths: tuple[str, ...]
    size: int = 0
    version: str = ""

    @property
    def name(self) -> str:
        """The path of the shard, or of the first image."""
        return self.paths[0]

    def digest(self) -> str:
        """Returns a hash of the unit, which changes with its files or the size of its shard, but not its version."""
        content = json.dumps([self.kind, self.paths, self.size])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def find_units(arguments: Sequence[str], images_per_part: int) -> list[Unit]:
    """Lists the units of work, always in the same order for the same arguments and files.

    Args:
        arguments: files, patterns and folders, local or on a bucket. Braces stand for several names, as in
            `shard-{000..039}.tar`. A folder or a prefix stands for all shards and images in it.
        images_per_part: number of image files in a unit.

    Raises:
        ConfigError: the braces of a pattern are wrong.
        MissingPackageError: the client for a bucket is not installed.
    """
    files = dict(file for argument in arguments for file in _find_files(argument))
    units = [Unit(kind, (path,), *state) for path, state in files.items() if (kind := find_kind(path)) != IMAGES]
    images = [path for path in files if find_kind(path) == IMAGES]
    groups = (images[start : start + images_per_part] for start in range(0, len(images), images_per_part))
    return units + [Unit(IMAGES, tuple(group)) for group in groups]


def find_kind(path: str) -> str:
    """Returns the kind of a file by its name: that of a shard, or `IMAGES`."""
    return next((kind for kind, suffix in _SHARDS.items() if suffix.search(path)), IMAGES)


_File = tuple[str, tuple[int, str]]  # the path, and the size and version of a shard
_NO_SHARD = 0, ""


def _find_files(argument: str) -> Iterator[_File]:
    is_url = is_on_bucket(argument)
    has_braces = "{" in argument and (is_url or not os.path.exists(argument))
    for pattern in expand_braces(argument, "the argument") if has_braces else [argument]:
        if is_url:
            yield from _list_bucket(pattern)
            continue
        if os.path.isdir(pattern):
            yield from _add_states(sorted(_find_shards(pattern)))
        yield from _add_states(find_images([pattern]))


def _find_shards(folder: str) -> Iterator[str]:
    for name in glob.iglob("**/*", root_dir=folder, recursive=True):
        path = os.path.join(folder, name)
        if find_kind(path) != IMAGES and not _is_cached_result(path) and os.path.isfile(path):
            yield path


def _is_cached_result(path: str) -> bool:
    return _CACHED_RESULT.match(os.path.basename(path)) is not None


def _add_states(paths: Iterable[str]) -> Iterator[_File]:
    for path in paths:
        state = _NO_SHARD
        if find_kind(path) != IMAGES and os.path.exists(path):
            status = os.stat(path)
            state = status.st_size, str(status.st_mtime_ns)
        yield os.path.abspath(path), state


def _list_bucket(url: str) -> Iterator[_File]:
    """Yields the objects that match a URL, a pattern or a prefix; a URL without a match is yielded unchanged."""
    import fsspec

    select_bucket_backend(url)
    scheme = url.partition("://")[0]
    is_prefix = False
    try:
        bucket = fsspec.filesystem(scheme)
        if glob.has_magic(url):
            objects = bucket.glob(url, detail=True)
        elif bucket.isfile(url):
            objects = {url: bucket.info(url)}
        else:
            objects, is_prefix = bucket.find(url, detail=True), True
    except ImportError as error:
        raise MissingPackageError(f"{url} needs a package that is not installed: {error}") from error
    except OSError as error:
        raise ConfigError(f"{url} cannot be listed: {error}") from error
    if not objects:
        yield url, _NO_SHARD
    for name in sorted(objects):
        path = name if is_on_bucket(name) else f"{scheme}://{name.lstrip('/')}"
        if find_kind(path) == IMAGES:
            if len(objects) == 1 or path.lower().endswith(NAME_SUFFIXES):
                yield path, _NO_SHARD
        elif not (is_prefix and _is_cached_result(path)):
            yield path, _get_state(objects[name])


def _get_state(entry: dict[str, Any]) -> tuple[int, str]:
    """Returns the size and the version of an object."""
    version = next((str(entry[field]) for field in _VERSION_FIELDS if entry.get(field)), "")
    return entry.get("size") or 0, version
