"""An in-memory bucket under gs://, which cannot rename objects, like a real one."""

from __future__ import annotations

from typing import Any

import fsspec
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem


class MemoryBucket(MemoryFileSystem):
    """Objects by their names after gs://. epath uses it if the file system of TensorFlow is not installed."""

    protocol = ("gcs", "gs")
    cachable = False

    def __init__(self, *arguments: Any, finalize_on_close: bool = False, **options: Any):
        super().__init__(*arguments, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("gs://", "/"))

    def mv(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("buckets have no rename")


def make_bucket(patch: pytest.MonkeyPatch) -> epath.Path:
    """Returns an empty bucket, which exists as long as the patch."""
    objects = type("Objects", (MemoryBucket,), {"store": {}, "pseudo_dirs": [""]})
    patch.setattr(fsspec, "filesystem", lambda *_, **options: objects(**options))
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    forget()
    return epath.Path("gs://bucket")


def forget() -> None:
    """Clears the file system of buckets that epath has cached."""
    gpath.backend_lib.fsspec_backend._get_filesystem.cache_clear()
