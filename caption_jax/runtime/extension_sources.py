"""Hashes the source code of extensions, for the keys of programs that are cached on disk."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from pathlib import Path

PACKAGES = ("caption_jax", "input_pipeline")  # of this project


def source_hash(cls: type) -> str:
    """Hash of the source code of an extension; "" for a class of this project.

    Covers the module that defines the class and all modules of the extension's project that it imports, directly or
    indirectly, at module level or inside functions. The project is the top-level package and, unless it is installed in
    site-packages, the folder that contains it.
    """
    if cls.__module__.partition(".")[0] in PACKAGES:
        return ""
    digest = hashlib.sha256()
    for name, source in sorted(_own_sources(cls).items()):
        digest.update(f"{name}\n".encode())
        digest.update(source)
    return digest.hexdigest()


def _own_sources(cls: type) -> dict[str, bytes]:
    """Module name -> source. Imports nothing, because an import may take seconds and is often not needed."""
    file, top = Path(inspect.getfile(cls)), cls.__module__.partition(".")[0]
    folders = getattr(sys.modules.get(top), "__path__", None)
    roots = [file.parent] if folders is None else [Path(folder).parent for folder in folders]
    sources = {cls.__module__: file.read_bytes()}
    pending = _with_parents({cls.__module__}) | _imported_names(cls.__module__, file, sources[cls.__module__])
    while pending:
        name = pending.pop()
        path = None if name in sources else _module_path(name, roots, top)
        if path is not None:
            sources[name] = path.read_bytes()
            pending |= _imported_names(name, path, sources[name])
    return sources


def _module_path(module: str, roots: list[Path], top: str) -> Path | None:
    """Path of a module of the project whose top-level package or module is `top`; None for all other modules."""
    top_level, *_ = parts = module.split(".")
    if top_level in PACKAGES:
        return None
    for root in roots:
        if top_level == top or not {"site-packages", "dist-packages"} & set(root.parts):
            path = root.joinpath(*parts)
            for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
                if file.is_file():
                    return file
    return None


def _imported_names(module: str, file: Path, source: bytes) -> set[str]:
    """Dotted names in the import statements of a module: modules, and attributes of modules."""
    if file.suffix != ".py":
        return set()
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            base = [*parents, *(node.module.split(".") if node.module else [])]
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return _with_parents(names)


def _with_parents(names: set[str]) -> set[str]:
    """Adds the parent packages of dotted names."""
    split = [name.split(".") for name in names]
    return {".".join(parts[:count]) for parts in split for count in range(1, len(parts) + 1)}
