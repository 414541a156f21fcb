"""Shards as local files: those on a bucket are copied, and those that are compressed are decompressed."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from input_pipeline.buckets import download
from input_pipeline.files import is_on_bucket
from input_pipeline.sources.shard_images import OpenShard

_DECOMPRESSORS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
_COPY_BYTES = 2**16  # so that little is lost before damage


@contextlib.contextmanager
def open_local(path: str) -> Iterator[tuple[str, str]]:
    """Makes a shard available as a local file until the end of the block.

    Args:
        path: local path or URL. The end of its name shows whether it is compressed.

    Yields:
        The local path, of a temporary file if the shard is on a bucket or compressed, and why the file lacks the end of
        the shard; "" if it is complete.

    Raises:
        OSError: the shard cannot be read.
    """
    decompress = next((function for suffix, function in _DECOMPRESSORS.items() if path.endswith(suffix)), None)
    with contextlib.ExitStack() as stack:
        local = path
        if is_on_bucket(path):
            local = stack.enter_context(tempfile.NamedTemporaryFile()).name
            download(path, local)
        else:
            OpenShard(path)  # checks that it is a regular file
        if decompress is None:
            yield local, ""
            return
        copy = stack.enter_context(tempfile.NamedTemporaryFile())
        problem = _decompress(stack.enter_context(decompress(local)), copy)
        if problem and not copy.tell():
            raise OSError(problem)
        copy.flush()
        yield copy.name, problem


def _decompress(source: Any, target: Any) -> str:
    """Writes as much as is undamaged. Returns why that is not all."""
    try:
        shutil.copyfileobj(source, target, _COPY_BYTES)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        return f"cannot be decompressed to its end: {error}"
    return ""
