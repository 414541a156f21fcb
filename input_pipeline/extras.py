"""Optional packages: which extra of pyproject.toml installs each, and the one line that says so where one is missing.

    with optional_packages("the HTML report"):
        import jinja2

raises `MissingPackageError`, "the HTML report needs packages that are not installed (jinja2): pip install
'caption-jax[train]'", where Jinja is missing. `require` does so before any work is done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

from input_pipeline.errors import MissingPackageError

# Extra -> the top-level modules that this project imports of what the extra installs.
EXTRAS = {
    "train": ("grain", "tensorflow_datasets", "tensorflow", "tensorboard", "clu", "matplotlib", "jinja2"),
    "java": ("pycocoevalcap",),
    "keras-weights": ("h5py",),
    "hub": ("huggingface_hub",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "tpu": ("libtpu",),
}

# What a training run imports from its first step to its report, whatever the data source.
TRAINING = ("grain", "clu", "tensorboard", "tensorflow", "matplotlib", "jinja2")

_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}
_BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # from an import hook
        return False


def require(purpose: str, *modules: str) -> None:
    """Checks that optional modules are installed, without importing them.

    Args:
        purpose: what needs them, in the singular: the subject of the message.
        modules: names in `EXTRAS`.

    Raises:
        MissingPackageError: some are not; the message names them and the command that installs them.
    """
    missing = [module for module in modules if not is_installed(module)]
    if missing:
        raise MissingPackageError(f"{purpose} needs {not_installed(*missing)}")


def not_installed(*modules: str) -> str:
    """The predicate of a message: the missing modules (names in `EXTRAS`), and the command that installs them."""
    extras = ",".join(dict.fromkeys(_EXTRA_OF[module] for module in modules))
    return f"packages that are not installed ({', '.join(modules)}): pip install 'caption-jax[{extras}]'"


@contextlib.contextmanager
def optional_packages(purpose: str) -> Iterator[None]:
    """A block of imports of optional packages.

    Args:
        purpose: what needs them, in the singular: the subject of the message.

    Raises:
        MissingPackageError: a module of `EXTRAS` is not installed; see `require`. Any other import error passes: it is
            that of a damaged installation.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF or is_installed(module):
            raise
        raise MissingPackageError(f"{purpose} needs {not_installed(module)}") from error


def prepare_bucket(path: str | os.PathLike[str]) -> None:
    """Readies etils' `epath` for a path on a bucket: through fsspec where its client for the scheme is installed.

    Otherwise `epath` goes through TensorFlow, whose import takes seconds, if that is installed. A local path needs
    nothing.

    Raises:
        MissingPackageError: neither is installed; the message names the command that installs the client.
    """
    path = os.fspath(path)
    scheme, on_bucket, _ = path.partition("://")
    if not on_bucket or scheme not in _BUCKETS:
        return
    if is_installed(_BUCKETS[scheme]):
        os.environ.setdefault("EPATH_USE_TF", "0")  # read at the first use of a path with a scheme
    elif not is_installed("tensorflow"):
        require(path, _BUCKETS[scheme])
