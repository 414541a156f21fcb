"""An in-memory bucket under gs:// that, like a cloud bucket, does not support renaming or appending."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem


class MemoryBucket(MemoryFileSystem):
    """File system for gs:// paths, which epath uses if TensorFlow is not installed."""

    protocol = ("gcs", "gs")
    cachable = False

    def __init__(self, *arguments: Any, finalize_on_close: bool = False, **options: Any):
        super().__init__(*arguments, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "/"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, mode.replace("a", "w"), **options)  # as in gcsfs

    def mv(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("buckets do not support renaming")


def make_bucket(patch: pytest.MonkeyPatch) -> epath.Path:
    """Returns the path of an empty bucket, which is available until `patch` is undone."""
    bucket_class = type("Bucket", (MemoryBucket,), {"store": {}, "pseudo_dirs": [""]})
    patch.setattr(fsspec, "filesystem", lambda *_, **options: bucket_class(**options))
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    clear_file_system_cache()
    return epath.Path("gs://bucket")


def clear_file_system_cache() -> None:
    """Clears the file systems that epath has cached."""
    gpath.backend_lib.fsspec_backend._get_filesystem.cache_clear()
