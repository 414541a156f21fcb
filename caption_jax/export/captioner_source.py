"""Source files of captioners that run without this project: one file each, with the code that they share inside."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

_FOLDER = Path(__file__).parent
_SHARED_IMPORT = re.compile(r"^from caption_jax\.export\.(\w+) import .*\n", re.MULTILINE)
_IMPORT = re.compile(r"^(?:from (\S+) )?import (.*)\n", re.MULTILINE)
_FUTURE = "from __future__ import annotations\n"


def read_captioner(name: str) -> str:
    """Returns the source of a captioner, in which shared code replaces the lines that import it.

    Args:
        name: name of a module of this package, such as "torch_captioner", whose imports are single lines.
    """
    source = (_FOLDER / f"{name}.py").read_text("utf-8")
    shared = [(_FOLDER / f"{module}.py").read_text("utf-8") for module in _SHARED_IMPORT.findall(source)]
    docstring, body = _SHARED_IMPORT.sub("", source).split(_FUTURE)
    bodies = [*(text.split(_FUTURE)[1] for text in shared), body]
    code = "\n\n".join(_IMPORT.sub("", text).strip("\n") + "\n" for text in bodies)
    return f"{docstring}{_FUTURE}\n{_merge_imports(''.join(bodies))}\n{code}"


def _merge_imports(source: str) -> str:
    """Returns the imports of a source, one line per module."""
    names = defaultdict(set)
    for module, imported in _IMPORT.findall(source):
        names[module].update(imported.split(", "))
    lines = [f"import {name}" for name in sorted(names.pop("", ()))]
    lines += [f"from {module} import {', '.join(sorted(imported))}" for module, imported in sorted(names.items())]
    return "\n".join(lines) + "\n"
