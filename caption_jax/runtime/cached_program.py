"""Programs that the next start reads from disk instead of tracing them again.

JAX's compilation cache saves compiling, not the tracing that leads there: of a model this size, seconds of Python. So
a `CachedProgram` leaves its StableHLO in the folder of that cache, `<name>-<hash>.stablehlo`. The hash is over all that
it is made of: this project's sources, the versions of what traces it, the description of what the function closes over,
and the shapes of its arguments. Like the compiled programs beside it, a file there is code that is run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax import export

from caption_jax.runtime.extension_sources import PACKAGES
from input_pipeline.files import write_atomically

PyTree = Any

_TRACED_BY = ("jax", "jaxlib", "flax", "optax")

log = logging.getLogger(__name__)


class CachedProgram:
    """A jitted function on one device, cached as StableHLO where JAX caches compiled programs.

    Without a folder for compiled programs (`jax_compilation_cache_dir`) it is `jax.jit` of the function.

    Args:
        function: of arrays in dictionaries, lists, tuples and None, and with a result of such.
        name: of its files.
        cache_key: for JSON: all that decides what `function` computes, except its arguments and this project's sources.
        options: of `jax.jit`: donated arguments, shardings.
    """

    def __init__(self, function: Callable, name: str, cache_key: Any, **options: Any):
        self._name, self._cache_key, self._options = name, cache_key, options
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
        parts = [_sources(), self._cache_key, signature, settings, device.platform, device.device_kind]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def cached_update(
    update: Callable, name: str, cache_key: Any, *, state: PyTree, inputs: tuple[PyTree, ...], outputs: PyTree
) -> Callable:
    """A `CachedProgram` of `update(state, *inputs) -> (state, outputs)` that donates the state.

    StableHLO files know dictionaries, lists and tuples only. A state of any other classes goes in and out as the list
    of its leaves.

    Args:
        update: the function; the state that it returns has the structure of the one that it takes.
        name: of its files.
        cache_key: see `CachedProgram`.
        state: shardings of the state's arrays, in its structure.
        inputs: shardings of the other arguments.
        outputs: sharding of the other result.
    """
    shardings, structure = jax.tree.flatten(state)

    def update_leaves(leaves: list[jax.Array], *arguments: PyTree) -> tuple[list[jax.Array], PyTree]:
        new_state, result = update(structure.unflatten(leaves), *arguments)
        return jax.tree.leaves(new_state), result

    program = CachedProgram(
        update_leaves,
        name,
        {**cache_key, "state": str(structure)},
        donate_argnums=0,
        in_shardings=(shardings, *inputs),
        out_shardings=(shardings, outputs),
    )

    def run(state: PyTree, *arguments: PyTree) -> tuple[PyTree, PyTree]:
        leaves, result = program(jax.tree.leaves(state), *arguments)
        return structure.unflatten(leaves), result

    return run


@functools.cache
def _sources() -> str:
    """A hash of what traces: this project's modules, and the versions of JAX, Flax and Optax."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    for package in _TRACED_BY:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()
