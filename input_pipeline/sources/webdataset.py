"""The `webdataset` source: random access to images and captions in tar files.

The members with the same path up to the first dot of the file name form a sample: `dir/007.jpg` with `dir/007.txt` or
`dir/007.json`. That path is the key of the sample, and its id unless `config.data.id_column` names a JSON field.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from input_pipeline.annotations.caption_file import CaptionFile, describe_value
from input_pipeline.annotations.fields import CAPTION_FIELDS, normalize
from input_pipeline.annotations.json_text import JsonError, parse_json
from input_pipeline.buckets import download
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError
from input_pipeline.files import is_on_bucket
from input_pipeline.image_formats import NAME_SUFFIXES
from input_pipeline.limits import DEFAULT_LIMITS, Limits
from input_pipeline.records import Report, Split
from input_pipeline.sources.shard_images import OpenShard, ShardState, TarImage
from input_pipeline.sources.shard_names import Shard, find_shards
from input_pipeline.sources.shard_splits import SHARD_AND_KEY, Sample, check_keys, clean_captions, make_shard_splits
from input_pipeline.sources.tar_index import ShardIndex, read_index, write_index
from input_pipeline.sources.tar_members import Member, read_members
from input_pipeline.terminal_text import escape

_THREADS = 8  # that wait for the disk; a network file system answers several requests at the same time
_LOG_SECONDS = 10.0
_IMAGES = frozenset(suffix[1:] for suffix in NAME_SUFFIXES)
_TEXT, _JSON = "txt", "json"

log = logging.getLogger(__name__)


def open_webdataset(spec: DataSpec, limits: Limits = DEFAULT_LIMITS) -> dict[str, Split]:
    """Opens the tar files of a folder, and reports problems with them.

    The headers and captions of a shard are read once and stored in `caption_index/` next to the shards, if that folder
    is writable. Images are read on access, from any thread.

    Raises:
        DataError: no shard matches a pattern, a split has no usable images, or there are problems and `on_error` is
            "stop".
        ConfigError: the splits are defined by keys of the folder source.
    """
    check_keys(spec)
    report = Report(spec.report_subject(spec.root or "."))
    shards = find_shards(spec, ".tar", report)
    reader = _ShardReader(spec, limits)
    samples: list[Sample] = []
    indices = _index_shards(shards, reader)
    for shard, index in zip(shards, indices, strict=True):
        for kind, text in index.problems:
            report.add(kind, f"{shard.name}: {text}")
        samples += _make_samples(shard, index)
    _log_ignored(indices)
    return make_shard_splits(samples, shards, spec, report)


def _log_ignored(indices: Sequence[ShardIndex]) -> None:
    several = sum(index.other_images for index in indices)
    if several:
        log.info("%d samples have several images, of which the first is used (config.data.image_column).", several)
    dotted = [name for index in indices for name in index.dotted_names]
    if dotted:
        log.info(
            "%d images are not used, because their keys end at the first dot of their names: %s",
            len(dotted),
            escape(dotted[0]),
        )


def _index_shards(shards: Sequence[Shard], reader: _ShardReader) -> list[ShardIndex]:
    indices: list[ShardIndex] = []
    logged = time.monotonic()
    failures: set[str] = set()

    def load(shard: Shard) -> ShardIndex:
        return _load_index(shard, reader, failures.add)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="shards") as pool:
        for index in pool.map(load, shards):
            indices.append(index)
            if time.monotonic() - logged > _LOG_SECONDS and len(indices) < len(shards):
                logged = time.monotonic()
                log.info("Indexed %d of %d shards", len(indices), len(shards))
    if failures:
        log.info("%s; the shards are indexed at every start", min(failures))
    return indices


def _load_index(shard: Shard, reader: _ShardReader, on_failure: Callable[[str], None]) -> ShardIndex:
    """Returns the stored index of a shard, or builds and stores it."""
    name = os.fspath(shard.path)
    try:
        if is_on_bucket(name):
            file, state = None, ShardState.of_object(name)
        else:
            file = OpenShard(name)
            state = ShardState.of_file(name, file.fileno())
        stamp = [state.size, state.modified_ns, reader.settings]
        path = shard.path.parent / "caption_index" / f"{shard.path.name}.json"
        index = read_index(path, state, stamp)
        if index is None:
            index = reader.read(shard, file.fileno(), state) if file else _read_download(shard, reader, state)
            try:
                write_index(path, index, stamp)
            except OSError as error:
                on_failure(f"{path} cannot be written ({error.strerror or error})")
        return index
    except OSError as error:
        return ShardIndex(ShardState(name, 0, 0), [], [["unreadable shards", str(error)]])


def _read_download(shard: Shard, reader: _ShardReader, state: ShardState) -> ShardIndex:
    """Builds the index of a shard in a bucket from a temporary copy: one request per header would take longer."""
    with tempfile.TemporaryDirectory(prefix="shard-") as folder:
        copy = os.path.join(folder, "shard.tar")
        download(shard.path, copy)
        file = OpenShard(copy)
        return reader.read(shard, file.fileno(), state)


def _make_samples(shard: Shard, index: ShardIndex) -> list[Sample]:
    return [
        Sample(
            TarImage(index.state, offset, size),
            tuple(captions),
            f"{shard.name}/{image_id}" if is_local else image_id,
            f"{shard.name}/{name}",
            shard.split,
        )
        for name, image_id, is_local, offset, size, captions in index.samples
    ]


@dataclasses.dataclass(frozen=True)
class _ShardReader:
    """Reads the headers and captions of shards."""

    spec: DataSpec
    limits: Limits

    @functools.cached_property
    def settings(self) -> list[Any]:
        """What the index of a shard depends on, in JSON, apart from the shard."""
        spec = self.spec
        return [spec.image_column, spec.caption_column, spec.id_column, list(dataclasses.asdict(self.limits).values())]

    def read(self, shard: Shard, file: int, state: ShardState) -> ShardIndex:
        """Builds the index of an open shard.

        Raises:
            OSError: the file cannot be read.
        """
        index = ShardIndex(state, [], [])

        def add(kind: str, text: str) -> None:
            index.problems.append([kind, text])

        samples: dict[str, dict[str, Member]] = {}
        for member in read_members(file, add):
            self._collect(member, samples, index, add)
        checker = CaptionFile(shard.path, add, limits=self.limits)
        for key, members in samples.items():
            self._add_sample(key, members, file, index, checker)
        return index

    @functools.cached_property
    def _image_extensions(self) -> frozenset[str]:
        name = self.spec.image_column.lower().lstrip(".")
        return frozenset([name]) if name else _IMAGES

    def _collect(
        self, member: Member, samples: dict[str, dict[str, Member]], index: ShardIndex, add: Callable[[str, str], None]
    ) -> None:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = name.partition(".")
        extension = extension.lower()
        if not stem:  # such as ._photo.jpg, which macOS adds
            return
        if extension not in (_TEXT, _JSON) and extension not in self._image_extensions:
            if extension.rpartition(".")[2] in self._image_extensions:
                index.dotted_names.append(member.name)
            return
        members = samples.setdefault(f"{folder}{slash}{stem}", {})
        if extension in members:
            add("duplicate members", f"{member.name} at byte {member.offset}")
        else:
            members[extension] = member

    def _add_sample(
        self, key: str, members: dict[str, Member], file: int, index: ShardIndex, checker: CaptionFile
    ) -> None:
        add = checker.on_problem
        if not key.isascii() and any("\udc80" <= letter <= "\udcff" for letter in key):
            add("names that are not UTF-8", ascii(key))
            return
        images = [member for extension, member in members.items() if extension in self._image_extensions]
        if not images:
            add("samples without an image", key)
            return
        if images[0].size > self.limits.image_file_bytes:
            add("images above config.limits.image_file_bytes", f"{images[0].name} ({images[0].size:,} bytes)")
            return
        try:
            image_id, captions = self._read_texts(key, members, file)
        except DataError as error:
            add("unreadable captions", f"{key}: {error}")
            return
        kept = clean_captions(image_id, captions, images[0].name, checker, add)
        if kept:
            image = images[0]
            is_local = self.spec.id_column == SHARD_AND_KEY
            index.samples.append([image.name, image_id, is_local, image.offset, image.size, list(kept)])
            index.other_images += len(images) > 1

    def _read_texts(self, key: str, members: dict[str, Member], file: int) -> tuple[str | int, list[str]]:
        """Returns the id and the captions of a sample. Raises DataError."""
        spec, image_id = self.spec, key
        needs_id = spec.id_column not in ("", SHARD_AND_KEY)
        has_text = _TEXT in members and not spec.caption_column
        values: dict[str, Any] = {}
        if _JSON in members and (needs_id or not has_text):
            values = self._read_json(members[_JSON], file)
        if needs_id:
            image_id = values.get(spec.id_column)
            if not isinstance(image_id, str | int) or isinstance(image_id, bool):
                raise DataError(f"the id {spec.id_column!r} (config.data.id_column) is {describe_value(image_id)}")
        if has_text:
            return image_id, [self._read_text(members[_TEXT], file)]
        if _JSON not in members:
            return image_id, []
        return image_id, _get_captions(values, spec.caption_column)

    def _read_json(self, member: Member, file: int) -> dict[str, Any]:
        try:
            values = parse_json(self._read_text(member, file), self.limits.json_values)
        except JsonError as error:
            raise DataError(f"{member.name} is not valid JSON: {error.reason} in line {error.line}") from None
        if not isinstance(values, dict):
            raise DataError(f"{member.name} must hold a JSON object, not {describe_value(values)}")
        return values

    def _read_text(self, member: Member, file: int) -> str:
        if member.size > self.limits.caption_file_bytes:
            raise DataError(f"{member.name} has {member.size:,} bytes (config.limits.caption_file_bytes)")
        content = os.pread(file, member.size, member.offset)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{member.name} is not UTF-8 (byte {error.start})") from None


def _get_captions(values: dict[str, Any], column: str) -> list[str]:
    """Returns the captions of a JSON object: a text or a list of texts. Raises DataError."""
    names = {normalize(name): name for name in reversed(values)}
    aliases = (column,) if column else CAPTION_FIELDS
    name = next((names[normalize(alias)] for alias in aliases if normalize(alias) in names), None)
    if name is None:
        wanted = repr(column) if column else "known to hold captions"
        listed = ", ".join(map(repr, values))[:300]
        raise DataError(f"no field {wanted} (config.data.caption_column); the fields are {listed}")
    captions = values[name]
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{name!r} is {describe_value(values[name])}; wanted a caption or a list of captions")
    return captions
