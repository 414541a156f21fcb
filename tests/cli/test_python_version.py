"""Python below 3.11 is rejected with one line instead of a syntax error."""

from __future__ import annotations

import ast
import runpy
import sys

import pytest
from small_run import ROOT

ENTRY_POINTS = ["main.py", "caption_jax/__main__.py"]
# Imported before `python -m caption_jax` runs `__main__.py`.
PACKAGE_FILES = [f"caption_jax/{name}.py" for name in ("__init__", "config_files", "lazy_names", "moved_modules")]


@pytest.mark.parametrize("path", [*ENTRY_POINTS, *PACKAGE_FILES])
def test_files_that_report_the_version_have_the_syntax_of_python_3_8(path):
    ast.parse((ROOT / path).read_text(), feature_version=(3, 8))


def test_the_package_imports_no_other_files_of_its_own():
    tree = ast.parse((ROOT / "caption_jax" / "__init__.py").read_text())
    imports = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imports == {"annotations", "config_files", "lazy_names", "moved_modules"}
    for path in PACKAGE_FILES[1:]:
        names = [
            node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert {name.partition(".")[0] for name in names} <= {*sys.stdlib_module_names, "__future__"}


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_older_versions_are_rejected_in_one_line(path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    monkeypatch.setattr(sys, "version", "3.10.4 (main)")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert stop.value.code == "error: caption-jax requires Python 3.11, 3.12 or 3.13, but this is Python 3.10.4"
