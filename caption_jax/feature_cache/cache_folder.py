"""Folders of caches on a local disk. Each is named after the hash of a key, which contains all that determines it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from caption_jax.errors import ConfigError
from caption_jax.runs.agreement import check_shared_folder
from input_pipeline.files import delete_stale_temporaries, is_on_bucket, write_atomically
from input_pipeline.inputs import CacheFiles


def choose_folder(parent: str, key: Mapping[str, Any], setting: str) -> Path:
    """Returns the folder of a cache, without creating it. All processes return the same folder, which they share.

    Args:
        parent: folder of all caches of this kind.
        key: JSON-serialisable cache key.
        setting: config key of `parent`, for the error message.

    Raises:
        ConfigError: `parent` is on a bucket, where files cannot be memory-mapped.
        ProcessesError: `parent` is not the same folder for all processes.
    """
    if is_on_bucket(parent):
        raise ConfigError(
            f"the files of this cache are memory-mapped, which is not supported for {parent}: set {setting} to a local "
            "folder"
        )
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()[:8]
    check_shared_folder(epath.Path(parent), setting, "set it to the path of a folder that all hosts mount")
    if jax.process_count() > 1:  # modification times can differ between machines, so all use the hash of process 0
        digest = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(digest, np.uint8)).astype(np.uint8))
    return Path(parent).resolve() / digest.hex()


def find_missing_blocks(files: CacheFiles) -> list[int]:
    """Returns the missing blocks that are assigned to this process, which are every n-th block for n processes."""
    return [block for block in files.blocks[jax.process_index() :: jax.process_count()] if not files.has_block(block)]


def prepare_folder(files: CacheFiles, missing: int, key: Mapping[str, Any], remedy: str) -> None:
    """Creates the folder and its key.json, after checking that there is enough disk space for the missing blocks.

    Args:
        files: the files of the cache.
        missing: number of missing blocks.
        key: the cache key.
        remedy: what to do if there is not enough space, for the error message.

    Raises:
        ConfigError: there is not enough space.
    """
    files.folder.mkdir(parents=True, exist_ok=True)
    delete_stale_temporaries(files.folder)
    required_bytes = min(missing * files.images_per_block, files.images) * files.bytes_per_image
    free_bytes = shutil.disk_usage(files.folder).free
    if required_bytes > free_bytes:
        raise ConfigError(
            f"the missing part of the cache needs {required_bytes / 1e9:.2f} GB, but {files.folder} has only "
            f"{free_bytes / 1e9:.2f} GB free: {remedy}"
        )
    if jax.process_index() == 0:
        write_atomically(files.folder / "key.json", json.dumps(key, indent=2) + "\n")
