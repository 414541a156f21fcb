"""Hashes the source code of extensions, for the keys of programs that are cached on disk."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from pathlib import Path

PACKAGES = ("caption_jax", "input_pipeline")  # the packages of this project


def source_hash(cls: type) -> str:
    """Returns a hash of the source code of an extension, or "" for a class of this project.

    The hash covers the module that defines the class and all modules of the extension's project that it imports,
    directly or indirectly, at module level or inside functions. The project consists of the top-level package and,
    unless that is installed in site-packages, of all modules in the folder that contains it.
    """
    if cls.__module__.partition(".")[0] in PACKAGES:
        return ""
    digest = hashlib.sha256()
    for name, source in sorted(_read_sources(cls).items()):
        digest.update(f"{name}\n".encode())
        digest.update(source)
    return digest.hexdigest()


def _read_sources(cls: type) -> dict[str, bytes]:
    """Returns the source of each module of an extension by module name, without importing any module."""
    file, package = Path(inspect.getfile(cls)), cls.__module__.partition(".")[0]
    folders = getattr(sys.modules.get(package), "__path__", None)
    roots = [file.parent] if folders is None else [Path(folder).parent for folder in folders]
    sources = {cls.__module__: file.read_bytes()}
    pending = _add_parents({cls.__module__}) | _parse_imports(cls.__module__, file, sources[cls.__module__])
    while pending:
        name = pending.pop()
        path = None if name in sources else _find_module(name, roots, package)
        if path is not None:
            sources[name] = path.read_bytes()
            pending |= _parse_imports(name, path, sources[name])
    return sources


def _find_module(module: str, roots: list[Path], package: str) -> Path | None:
    """Returns the path of a module that belongs to the extension's project, or None for all other modules.

    Args:
        module: dotted name of the module.
        roots: folders that contain the top-level package of the extension.
        package: the top-level package or module of the extension.
    """
    top_level, *_ = parts = module.split(".")
    if top_level in PACKAGES:
        return None
    for root in roots:
        if top_level == package or not {"site-packages", "dist-packages"} & set(root.parts):
            path = root.joinpath(*parts)
            for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
                if file.is_file():
                    return file
    return None


def _parse_imports(module: str, file: Path, source: bytes) -> set[str]:
    """Returns the dotted names in the import statements of a module, which may be modules or their attributes."""
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
    return _add_parents(names)


def _add_parents(names: set[str]) -> set[str]:
    """Adds the parent packages of dotted names."""
    split_names = [name.split(".") for name in names]
    return {".".join(parts[:count]) for parts in split_names for count in range(1, len(parts) + 1)}
