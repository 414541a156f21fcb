"""The sources of an extension, which need not be this project's: what a program that is cached on disk depends on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from pathlib import Path

PACKAGES = ("caption_jax", "input_pipeline")  # this project's


def source_of(cls: type) -> str:
    """A hash of the sources of an extension; "" for a class of this project.

    It is over the module that defines the class and those that this one imports, directly or not, early or late, from
    its own project: the same package or, unless that is where packages are installed, the same folder.
    """
    if cls.__module__.partition(".")[0] in PACKAGES:
        return ""
    digest = hashlib.sha256()
    for name, source in sorted(_own_sources(cls).items()):
        digest.update(f"{name}\n".encode())
        digest.update(source)
    return digest.hexdigest()


def _own_sources(cls: type) -> dict[str, bytes]:
    """Module -> source. Nothing is imported for it: an import may take seconds, and most starts need none."""
    first, top = Path(inspect.getfile(cls)), cls.__module__.partition(".")[0]
    folders = getattr(sys.modules.get(top), "__path__", None)
    roots = [first.parent] if folders is None else [Path(folder).parent for folder in folders]
    sources = {cls.__module__: first.read_bytes()}
    waiting = _with_parents({cls.__module__}) | _imported(cls.__module__, first, sources[cls.__module__])
    while waiting:
        name = waiting.pop()
        file = None if name in sources else _file_of(name, roots, top)
        if file is not None:
            sources[name] = file.read_bytes()
            waiting |= _imported(name, file, sources[name])
    return sources


def _file_of(module: str, roots: list[Path], top: str) -> Path | None:
    """The file of a module of the project whose top-level package or module is `top`; None for any other module."""
    first, *_ = parts = module.split(".")
    if first in PACKAGES:
        return None
    for root in roots:
        if first == top or not {"site-packages", "dist-packages"} & set(root.parts):
            path = root.joinpath(*parts)
            for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
                if file.is_file():
                    return file
    return None


def _imported(module: str, file: Path, source: bytes) -> set[str]:
    """What the import statements of a module name: modules, and things in modules."""
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
    """Dotted names, and the packages around them."""
    split = [name.split(".") for name in names]
    return {".".join(parts[:count]) for parts in split for count in range(1, len(parts) + 1)}
