"""Programs that the next start takes up without tracing them again.

JAX's compilation cache saves compiling, not the tracing that leads there: of a model this size, seconds of Python. So
a `KeptProgram` leaves its StableHLO in the folder of that cache, `<name>-<hash>.stablehlo`. The hash is over all that
it is made of: this project's sources, the versions of what traces it, the description of what the function closes over,
and the shapes of its arguments. Like the compiled programs beside it, a file there is code that is run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax import export

from input_pipeline.files import write_atomically

PyTree = Any

_TRACED_BY = ("jax", "jaxlib", "flax", "optax")

log = logging.getLogger(__name__)


class KeptProgram:
    """A jitted function on one device, kept as StableHLO where JAX keeps compiled programs.

    Without a folder for compiled programs (`jax_compilation_cache_dir`) it is `jax.jit` of the function.

    Args:
        function: of arrays in dictionaries, lists, tuples and None, and with a result of such.
        name: of its files.
        about: for JSON: all that decides what `function` computes, beside its arguments and this project's sources.
        options: of `jax.jit`: which arguments are donated, where they lie.
    """

    def __init__(self, function: Callable, name: str, about: Any, **options: Any):
        self._name, self._about, self._options = name, about, options
        self._jitted = jax.jit(function, **options)
        self._programs: dict[Any, Callable] = {}

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Calls the function."""
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        if (tree, shapes) not in self._programs:
            self._programs[tree, shapes] = self._program(arguments, f"{tree} {shapes}")
        return self._programs[tree, shapes](*arguments)

    def _program(self, arguments: tuple[PyTree, ...], signature: str) -> Callable:
        folder = jax.config.jax_compilation_cache_dir
        if not folder:
            return self._jitted
        file = epath.Path(folder) / f"{self._name}-{self._key(signature)}.stablehlo"
        try:
            return jax.jit(export.deserialize(bytearray(file.read_bytes())).call, **self._options)
        except FileNotFoundError:
            pass
        except Exception as error:  # cut short or of another version: any type
            log.warning("%s cannot be read and is made again (%s)", file, error)
        exported = export.export(self._jitted)(*arguments)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, bytes(exported.serialize()))
        except OSError as error:
            log.warning("the program cannot be kept for the next start: %s", error)
        return jax.jit(exported.call, **self._options)

    def _key(self, signature: str) -> str:
        settings = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
        device = jax.devices()[0]
        parts = [_sources(), self._about, signature, settings, device.platform, device.device_kind]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def source_of(cls: type) -> str:
    """A hash of the file that defines a class, for `about`: an extension need not be of this project's sources."""
    return hashlib.sha256(Path(inspect.getfile(cls)).read_bytes()).hexdigest()


@functools.cache
def _sources() -> str:
    """A hash of what traces: this project's modules, and the versions of JAX, Flax and Optax."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in ("caption_jax", "input_pipeline"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    for package in _TRACED_BY:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()
