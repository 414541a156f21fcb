"""Optional packages, the extras of pyproject.toml that install them, and errors for missing packages.

    with optional_packages("the HTML report"):
        import jinja2

raises `MissingPackageError` with the message "the HTML report needs packages that are not installed (jinja2): pip
install 'caption-jax[train]', or '.[train]' in a checkout" if Jinja is not installed. `require` raises the same error
before any work is done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from input_pipeline.errors import ConfigError, MissingPackageError

# Top-level modules that this project imports, by the extra that installs them.
EXTRAS = {
    "train": (
        *("grain", "array_record", "tensorflow_datasets", "tensorflow", "tensorboard"),
        *("clu", "matplotlib", "jinja2"),
    ),
    "java": ("pycocoevalcap",),
    "keras-weights": ("h5py",),
    "heic": ("pillow_heif",),
    "parquet": ("pyarrow",),
    "ray": ("ray", "pandas"),
    "hub": ("huggingface_hub",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "serve": ("starlette", "uvicorn", "python_multipart", "prometheus_client"),
    "onnx": ("jax2onnx",),
    "tpu": ("libtpu",),
    "cuda-compiler": ("jax_cuda12_plugin",),
}

# Imported by every training run between its first step and its report, for all data sources.
TRAINING = ("grain", "clu", "tensorboard", "tensorflow", "matplotlib", "jinja2")

_EXTRA_BY_MODULE = {module: extra for extra, modules in EXTRAS.items() for module in modules}
BUCKET_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}  # fsspec's clients by URL scheme
_OTHER_SCHEMES = ("az", "hf")  # etils accesses them if the user has installed fsspec's client


def is_installed(module: str) -> bool:
    """Whether a top-level module is installed. Does not import it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # raised by an import hook
        return False


def require(purpose: str, *modules: str) -> None:
    """Checks that optional modules are installed, without importing them.

    Args:
        purpose: subject of the message, in the singular.
        modules: module names in `EXTRAS`.

    Raises:
        MissingPackageError: at least one is not installed. The message contains the command that installs them.
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise MissingPackageError(f"{purpose} needs {describe_missing(*missing)}")


def describe_missing(*modules: str) -> str:
    """Returns the end of an error message, which lists missing modules of `EXTRAS` and the command to install them."""
    extras = ",".join(dict.fromkeys(_EXTRA_BY_MODULE[module] for module in modules))
    command = f"pip install 'caption-jax[{extras}]', or '.[{extras}]' in a checkout"
    return f"packages that are not installed ({', '.join(modules)}): {command}"


@contextlib.contextmanager
def optional_packages(purpose: str) -> Iterator[None]:
    """Context manager for imports of optional packages.

    Args:
        purpose: subject of the message, in the singular.

    Raises:
        MissingPackageError: a module of `EXTRAS` is not installed; see `require`. Other import errors indicate a broken
            installation and propagate unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_BY_MODULE or is_installed(module):
            raise
        raise MissingPackageError(f"{purpose} needs {describe_missing(module)}") from error


def select_bucket_backend(path: str | os.PathLike[str]) -> None:
    """Selects the backend of etils' `epath` for a path on a bucket. Does nothing for a local path.

    The backend is fsspec if its client for the scheme is installed, otherwise TensorFlow, whose import takes seconds.
    fsspec is configured to list folders every time, because its cached lists miss the files of other processes.

    Raises:
        ConfigError: etils has no backend for the scheme, so it would use a local path.
        MissingPackageError: neither is installed. The message contains the command that installs the client.
    """
    path = os.fspath(path)
    scheme, separator, _ = path.partition("://")
    if separator and scheme not in (*BUCKET_CLIENTS, *_OTHER_SCHEMES):
        raise ConfigError(f"{path}: there is no client for {scheme}://; use a local path, gs:// or s3://")
    if not separator or scheme not in BUCKET_CLIENTS:
        return
    if is_installed(BUCKET_CLIENTS[scheme]):
        os.environ.setdefault("EPATH_USE_TF", "0")  # read when a path with a scheme is first used
        from fsspec.config import conf  # imported lazily, because most paths are local

        conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    elif not is_installed("tensorflow"):
        require(path, BUCKET_CLIENTS[scheme])
