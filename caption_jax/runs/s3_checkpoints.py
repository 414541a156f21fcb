"""Orbax checkpoints in S3.

Orbax writes to `gs://`, where a checkpoint is complete when its `commit_success.txt` exists, and to local disks, where
it is renamed. Its functions for `gs://` are here extended to `s3://`, so that both kinds of bucket are treated alike:
its metadata is accessed through `etils.epath`, and its arrays through the driver `s3` of tensorstore. Orbax has no
public setting for that.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from types import ModuleType
from typing import Any

from etils import epath

from input_pipeline.files import normalise_path

_SCHEMES = ("gs://", "s3://")


def extend_orbax_to_s3() -> None:
    """Makes Orbax treat `s3://` as it treats `gs://`. May be called repeatedly.

    If Orbax has other internals than the release in constraints.txt, nothing may change; `is_extended` finds out.
    """
    with contextlib.suppress(ImportError, AttributeError):  # runs on local disks and gs:// do not depend on them
        gcs_utils, tensorstore_utils = _import_internals()
        if gcs_utils._GCS_PATH_PREFIX != _SCHEMES:
            locate_in_gcs = gcs_utils.get_kvstore_for_gcs
            gcs_utils._GCS_PATH_PREFIX = _SCHEMES
            gcs_utils.get_kvstore_for_gcs = lambda path: describe_store(path) if _is_s3(path) else locate_in_gcs(path)
            tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_SCHEMES)
            tensorstore_utils._normalize_path = normalise_path


def is_extended() -> bool:
    """Whether Orbax would write arrays to S3."""
    try:
        gcs_utils, tensorstore_utils = _import_internals()
        spec = tensorstore_utils.build_kvstore_tspec("s3://bucket/run", use_ocdbt=False)
        return spec.get("driver") == "s3" and gcs_utils.is_gcs_path(epath.Path("s3://bucket/run"))
    except (ImportError, AttributeError):
        return False


def _import_internals() -> tuple[ModuleType, ModuleType]:
    prefix = "orbax.checkpoint._src"
    path, serialization = f"{prefix}.path.gcs_utils", f"{prefix}.serialization.tensorstore_utils"
    return importlib.import_module(path), importlib.import_module(serialization)


def describe_store(path: str) -> dict[str, Any]:
    """Describes a folder of S3 to tensorstore.

    The endpoint, the region and the keys are those that s3fs and other AWS tools find in the environment.

    Args:
        path: a URL such as `s3://bucket/run`.

    Returns:
        The specification of a `tensorstore.KvStore`.
    """
    bucket, _, folder = path.removeprefix("s3://").partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": folder}
    optional = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    spec |= {name: value for name, value in optional.items() if value}
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        spec["aws_credentials"] = {"type": "environment"}  # otherwise, tensorstore complains that there are no profiles
    return spec


def _is_s3(path: str) -> bool:
    return str(path).startswith("s3://")
