"""Folder of the cache of compiled programs, its use without changing JAX's global configuration, and damaged files."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from caption_jax.named_models import is_shared_copy
from input_pipeline.files import is_on_bucket, storage_path

log = logging.getLogger(__name__)

_SCOPE_LOCK = threading.RLock()


def locate_cache(workdir: str | os.PathLike[str] | None) -> str | None:
    """Returns the folder for compiled programs of a workdir; None if no folder is writable.

    The folder is `compile_cache` in the workdir. Without a workdir, or if it is read-only or a model folder, it is
    `caption-jax` in `$XDG_CACHE_HOME` or `~/.cache`. A bucket is assumed to be writable.
    """
    if workdir is not None and not is_shared_copy(workdir):
        folder = os.path.join(os.fspath(workdir), "compile_cache")
        if is_on_bucket(folder) or _is_writable(Path(folder)):
            return folder
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(user_cache, "caption-jax")
    return folder if os.path.isabs(folder) and _is_writable(Path(folder)) else None


def is_cache_safe() -> bool:
    """Returns whether compiled programs may be cached: JAX's cache is enabled, and there is at most one CPU device.

    A cached XLA:CPU program has lost the order of its collectives. Devices that share a thread pool then wait for each
    other forever, and XLA terminates the process (JAX 0.10).
    """
    has_several_cpus = jax.default_backend() == "cpu" and jax.device_count() > 1
    return jax.config.jax_enable_compilation_cache and not has_several_cpus


@contextlib.contextmanager
def scoped_cache(folder: str) -> Iterator[None]:
    """Uses `folder` as JAX's compilation cache inside the `with` block, for programs of any compile time.

    Only for processes that have not configured a cache. Programs that other threads compile meanwhile are cached too.
    """
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    guard_programs()
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": jax.config.jax_persistent_cache_min_entry_size_bytes,
    }
    with _SCOPE_LOCK:
        previous = {name: getattr(jax.config, name) for name in settings}
        _configure(settings)
        reset_cache()  # JAX reads the folder only once
        try:
            yield
        finally:
            _configure(previous)
            reset_cache()


@functools.cache
def guard_programs() -> None:
    """Makes JAX notice damaged files of its compilation cache, and replace them.

    JAX compresses compiled programs with zstandard, if that package is installed, without a checksum. A flipped bit can
    then crash the process or change the machine code. zlib, which JAX uses otherwise, has a checksum. JAX reports a
    damaged file, but never replaces it. There is no public access to either.
    """
    from jax._src import compilation_cache as cache

    for name in ("zstd", "zstandard"):
        if hasattr(cache, name):
            setattr(cache, name, None)
    read = cache.get_executable_and_time

    @functools.wraps(read)
    def read_or_delete(cache_key: str, *arguments: Any, **options: Any) -> tuple[Any, int | None]:
        try:
            return read(cache_key, *arguments, **options)
        except Exception as error:  # damaged files can raise any exception
            folder = jax.config.jax_compilation_cache_dir
            if not folder:
                raise
            file = storage_path(folder) / f"{cache_key}-cache"
            log.warning("%s is damaged (%s): the program is compiled again", file, error)
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
            return None, None

    cache.get_executable_and_time = read_or_delete


def _configure(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)


def _is_writable(folder: Path) -> bool:
    """Returns whether files can be created in a local folder, which may not exist yet."""
    existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
