"""Disk cache of traced programs, which saves tracing them again when a process restarts.

JAX's compilation cache skips compilation but not tracing, which takes seconds for a model of this size. A
`CachedProgram` therefore stores its StableHLO in the same folder, as `<name>-<hash>.stablehlo`. The hash covers
everything that determines the program: this project's sources, the versions of JAX, Flax and Optax, the caller's cache
key, and the structure, shapes and dtypes of the arguments. The file starts with its checksum, because a program with a
flipped bit may still be valid. Like compiled programs, these files contain code that will
be executed, so the folder must be trusted.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from caption_jax.runtime.compilation_cache import scoped_cache
from caption_jax.runtime.extension_sources import PACKAGES
from input_pipeline.files import storage_path, write_atomically

PyTree = Any

_MAGIC = b"caption-jax program 1\n"
_TRACING_PACKAGES = ("jax", "jaxlib", "flax", "optax")

log = logging.getLogger(__name__)

# Held while programs with a default folder are made, because that changes JAX's global configuration.
_DEFAULT_FOLDER_LOCK = threading.RLock()


class CachedProgram:
    """A jitted function on one device whose StableHLO is stored in JAX's compilation cache folder.

    Thread-safe: threads that need the same program wait until one of them has made it.

    Equivalent to `jax.jit` if that folder (`jax_compilation_cache_dir`) is not set and there is no `default_folder`.

    Args:
        function: the function. Its arguments and result must be pytrees of arrays in dictionaries, lists, tuples and
            None.
        name: prefix of the names of the cached files.
        cache_key: JSON-serialisable description of everything that determines what `function` computes, except its
            arguments and this project's sources.
        default_folder: the folder to use if JAX has none; JAX's configuration is changed only while compiling.
        **options: options of `jax.jit`, such as donated arguments and shardings.
    """

    def __init__(
        self, function: Callable, name: str, cache_key: Any, *, default_folder: str | None = None, **options: Any
    ):
        self._name, self._cache_key, self._options = name, cache_key, options
        self._default_folder = default_folder
        self._jitted = jax.jit(function, **options)
        self._programs: dict[Any, Callable] = {}
        self._lock = threading.RLock() if default_folder is None else _DEFAULT_FOLDER_LOCK

    def __call__(self, *arguments: PyTree) -> PyTree:
        """Calls the function, tracing it only if no cached program matches the arguments."""
        return self._get_program(arguments)(*arguments)

    def compile(self, *arguments: PyTree) -> None:
        """Compiles the function for the shapes of `arguments`, which may be abstract, before it is called."""
        program = self._get_program(arguments)
        if not isinstance(program, jax.stages.Compiled):
            program.lower(*arguments).compile()

    def _get_program(self, arguments: tuple[PyTree, ...]) -> Callable:
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        program = self._programs.get((tree, shapes))
        if program is None:
            with self._lock:
                program = self._programs.get((tree, shapes))  # another thread may have made it meanwhile
                if program is None:
                    program = self._make_program(arguments, f"{tree} {shapes}")
                    self._programs[tree, shapes] = program
        return program

    def _make_program(self, arguments: tuple[PyTree, ...], signature: str) -> Callable:
        configured = jax.config.jax_compilation_cache_dir
        if configured is not None:  # "" disables the cache
            return self._load_or_trace(configured, arguments, signature) if configured else self._jitted
        if self._default_folder is None:
            return self._jitted
        program = self._load_or_trace(self._default_folder, arguments, signature)
        with scoped_cache(self._default_folder):
            return program.lower(*arguments).compile()

    def _load_or_trace(self, folder: str, arguments: tuple[PyTree, ...], signature: str) -> Callable:
        file = storage_path(folder) / f"{self._name}-{self._compute_hash(signature)}.stablehlo"
        try:
            return jax.jit(export.deserialize(bytearray(_remove_checksum(file.read_bytes()))).call, **self._options)
        except FileNotFoundError:
            pass
        except Exception as error:  # incompatible files can raise any exception
            log.warning("cannot read %s, tracing the program again (%s)", file, error)
        exported = export.export(self._jitted)(*arguments)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, _add_checksum(bytes(exported.serialize())))
        except OSError as error:
            log.warning("cannot cache the traced program: %s", error)
        return jax.jit(exported.call, **self._options)

    def _compute_hash(self, signature: str) -> str:
        settings = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
        device = jax.devices()[0]
        key = [_project_hash(), self._cache_key, signature, settings, device.platform, device.device_kind]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


class CachedUpdate:
    """A `CachedProgram` for `update(state, *inputs) -> (state, outputs)` that donates the state.

    Exported programs support only dictionaries, lists and tuples, so a state with other classes is passed as the list
    of its leaves.

    Args:
        update: the function. The returned state must have the same structure as the input state.
        name: see `CachedProgram`.
        cache_key: see `CachedProgram`; a dictionary.
        state: shardings of the state, as a pytree with the structure of the state.
        inputs: shardings of the other arguments.
        outputs: sharding of the other result.
    """

    def __init__(
        self,
        update: Callable,
        name: str,
        cache_key: Any,
        *,
        state: PyTree,
        inputs: tuple[PyTree, ...],
        outputs: PyTree,
    ):
        shardings, structure = jax.tree.flatten(state)

        def update_leaves(leaves: list[jax.Array], *arguments: PyTree) -> tuple[list[jax.Array], PyTree]:
            new_state, result = update(structure.unflatten(leaves), *arguments)
            return jax.tree.leaves(new_state), result

        self._structure = structure
        self._program = CachedProgram(
            update_leaves,
            name,
            {**cache_key, "state": str(structure)},
            donate_argnums=0,
            in_shardings=(shardings, *inputs),
            out_shardings=(shardings, outputs),
        )

    def __call__(self, state: PyTree, *arguments: PyTree) -> tuple[PyTree, PyTree]:
        """Calls the function."""
        leaves, result = self._program(jax.tree.leaves(state), *arguments)
        return self._structure.unflatten(leaves), result

    def compile(self, state: PyTree, *arguments: PyTree) -> None:
        """Compiles the function for the shapes of the arguments; see `CachedProgram.compile`."""
        self._program.compile(jax.tree.leaves(state), *arguments)


def _add_checksum(program: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(program).digest() + program


def _remove_checksum(content: bytes) -> bytes:
    """Returns the program in a file.

    Raises:
        ValueError: it does not match the checksum.
    """
    start = len(_MAGIC)
    digest, program = content[start : start + 32], content[start + 32 :]
    if not content.startswith(_MAGIC) or hashlib.sha256(program).digest() != digest:
        raise ValueError("it is damaged: the contents do not match their checksum")
    return program


@functools.cache
def _project_hash() -> str:
    """Returns a hash of this project's modules and of the versions of the packages that trace programs."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    for package in _TRACING_PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()
