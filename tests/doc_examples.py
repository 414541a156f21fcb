"""Code examples from the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from small_run import ROOT

EXTENDING = ROOT / "docs" / "extending.md"


def read_python_blocks(document: Path) -> list[str]:
    """Returns the contents of all Python blocks of a document."""
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def write_example_files(folder: Path) -> list[str]:
    """Writes the files `custom/*.py` of docs/extending.md into `folder`. Returns their paths relative to it."""
    files = re.findall(r"`(custom/\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", EXTENDING.read_text(), flags=re.DOTALL)
    (folder / "custom").mkdir()
    for name, code in files:
        (folder / name).write_text(code)
    return [name for name, _ in files]
