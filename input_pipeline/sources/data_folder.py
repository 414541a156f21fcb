"""The folder of a dataset, `config.data.root`, on a local disk or in a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from input_pipeline.buckets import check_access
from input_pipeline.data_spec import DataSpec
from input_pipeline.errors import DataError
from input_pipeline.files import is_on_bucket, storage_path

if TYPE_CHECKING:
    from etils import epath

KEY = "config.data.root"


def find_root(spec: DataSpec, contents: str) -> Path | epath.Path:
    """Returns the folder of a dataset.

    Args:
        spec: `config.data`.
        contents: what the folder should contain, for the message.

    Raises:
        DataError: there is no such folder.
        ConfigError: there is no access to the bucket.
        MissingPackageError: the client of the bucket is not installed.
    """
    on_bucket = is_on_bucket(spec.root)
    root = storage_path(spec.root.rstrip("/")) if on_bucket else Path(spec.root or ".")
    if not (check_access(root, KEY) if on_bucket else root.is_dir()):
        raise DataError(f"no such folder: {root}; set {KEY} to the folder with the {contents}")
    return root
