"""Units of work of a bulk run: shards, and groups of image files. Each unit becomes one Parquet file."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from caption_jax.errors import ConfigError, MissingPackageError
from caption_jax.inference.caption_files import find_images
from input_pipeline.extras import select_bucket_backend
from input_pipeline.files import is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES
from input_pipeline.sources.shard_names import expand_braces

IMAGES = "images"
_SHARDS = {
    "tar": re.compile(r"\.(tar|tar\.gz|tgz)$"),
    "parquet": re.compile(r"\.parquet$"),
    "arrow": re.compile(r"\.arrow$"),
    "array_record": re.compile(r"\.array_?record(-\d+-of-\d+)?$"),
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """Images that one worker captions, and whose captions are one Parquet file.

    Attributes:
        kind: "tar", "parquet", "arrow" or "array_record" for a shard, `IMAGES` for image files.
        paths: absolute paths or URLs: the shard, or the image files.
        size: size of the shard in bytes; 0 for image files, and for a shard that does not exist.
    """

    kind: str
    paths: tuple[str, ...]
    size: int = 0

    @property
    def name(self) -> str:
        """The path of the shard, or of the first image."""
        return self.paths[0]

    def digest(self) -> str:
        """Returns a hash of the unit, which changes with its files or the size of its shard."""
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
    units = [Unit(kind, (path,), size) for path, size in files.items() if (kind := find_kind(path)) != IMAGES]
    images = [path for path in files if find_kind(path) == IMAGES]
    groups = (images[start : start + images_per_part] for start in range(0, len(images), images_per_part))
    return units + [Unit(IMAGES, tuple(group)) for group in groups]


def find_kind(path: str) -> str:
    """Returns the kind of a file by its name: that of a shard, or `IMAGES`."""
    return next((kind for kind, suffix in _SHARDS.items() if suffix.search(path)), IMAGES)


def _find_files(argument: str) -> Iterator[tuple[str, int]]:
    """Yields paths and, for shards, their sizes."""
    if is_on_bucket(argument):
        yield from _list_bucket(argument)
        return
    has_braces = "{" in argument and not os.path.exists(argument)
    for pattern in expand_braces(argument, "the argument") if has_braces else [argument]:
        if os.path.isdir(pattern):
            yield from _add_sizes(sorted(_find_shards(pattern)))
        yield from _add_sizes(find_images([pattern]))


def _find_shards(folder: str) -> Iterator[str]:
    for name in glob.iglob("**/*", root_dir=folder, recursive=True):
        path = os.path.join(folder, name)
        if find_kind(path) != IMAGES and os.path.isfile(path):
            yield path


def _add_sizes(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    for path in paths:
        is_shard = find_kind(path) != IMAGES and os.path.exists(path)
        yield os.path.abspath(path), os.path.getsize(path) if is_shard else 0


def _list_bucket(url: str) -> Iterator[tuple[str, int]]:
    """Yields the objects that match a URL, a pattern or a prefix; a URL without a match is yielded unchanged."""
    import fsspec

    select_bucket_backend(url)
    scheme = url.partition("://")[0]
    try:
        bucket = fsspec.filesystem(scheme)
        if glob.has_magic(url):
            objects = bucket.glob(url, detail=True)
        elif bucket.isfile(url):
            objects = {url: bucket.info(url)}
        else:
            objects = bucket.find(url, detail=True)
    except ImportError as error:
        raise MissingPackageError(f"{url} needs a package that is not installed: {error}") from error
    except OSError as error:
        raise ConfigError(f"{url} cannot be listed: {error}") from error
    if not objects:
        yield url, 0
    for name in sorted(objects):
        path = name if is_on_bucket(name) else f"{scheme}://{name.lstrip('/')}"
        if len(objects) == 1 or find_kind(path) != IMAGES or path.lower().endswith(NAME_SUFFIXES):
            yield path, objects[name].get("size") or 0 if find_kind(path) != IMAGES else 0
