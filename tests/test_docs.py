"""Documents mention only existing files, modules, classes, config keys and headings, and their examples run."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_examples import EXTENDING, read_python_blocks
from ml_collections import ConfigDict
from small_run import ROOT

from caption_jax.config import default_config
from caption_jax.specs import RunSpec

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("caption_jax", "input_pipeline", "benchmarks")
FOLDERS = (*PACKAGES, "configs", "tests")
EXAMPLE_PREFIX = "custom/"  # example files of docs/extending.md
ASSUMED_NAMES = ["config", "WORKDIR", "pil_image", "array"]  # examples leave their definition to the reader


@functools.cache
def parse_sources() -> dict[Path, ast.Module]:
    """Returns the syntax trees of all Python files."""
    paths = [ROOT / "main.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def extract_inline_code(text: str) -> str:
    """Returns the inline code of a Markdown text, one span per line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(re.findall(r"`([^`\n]+)`", prose))


def find_missing_files(text: str) -> list[str]:
    """Returns the configs in a text, and the Python files in its inline code, that do not exist.

    Paths are relative to the root or to `caption_jax`.
    """
    names = {path.name for path in parse_sources()}
    missing = [path for path in re.findall(r"configs/\w+\.py", text) if not (ROOT / path).is_file()]
    for path in re.findall(r"[\w/.-]+\.py\b", extract_inline_code(text)):
        exists = (ROOT / path).is_file() or (ROOT / "caption_jax" / path).is_file() if "/" in path else path in names
        if not exists and not path.startswith(EXAMPLE_PREFIX):
            missing.append(path)
    return missing


def find_missing_names(text: str) -> list[str]:
    """Returns names such as `caption_jax.module.Class` or `caption_jax.module:Class` that do not exist."""
    pattern = rf"(?<![\w/])(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?::\w+)?(?!/)"
    return [name for name in dict.fromkeys(re.findall(pattern, text)) if not name_exists(name)]


def name_exists(name: str) -> bool:
    module, *attributes = name.replace(":", ".").split(".")
    while attributes and is_module(f"{module}.{attributes[0]}"):
        module = f"{module}.{attributes.pop(0)}"
    target = importlib.import_module(module)
    for attribute in attributes:
        if not hasattr(target, attribute):
            return False
        target = getattr(target, attribute)
    return True


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent is not a package
        return False


def find_missing_members(text: str) -> list[str]:
    """Returns names such as `Class.member` in inline code that no class of this project has."""
    names = re.findall(r"\b[A-Z]\w*[a-z]\w*\.(?!jpg)\w+\b(?!\.txt)", extract_inline_code(text))
    return [name for name in names if name not in collect_members()]


@functools.cache
def collect_members() -> frozenset[str]:
    """Returns `Class.member` for all members of all classes of this project."""
    return frozenset(f"{cls}.{member}" for tree in parse_sources().values() for cls, member in iterate_members(tree))


def iterate_members(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields the class and the name of every method, field and annotated attribute."""
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef):
            for node in ast.walk(cls):
                if isinstance(node, ast.FunctionDef):
                    yield cls.name, node.name
                elif isinstance(node, ast.AnnAssign):
                    yield cls.name, ast.unparse(node.target).removeprefix("self.")


def find_missing_keys(text: str) -> list[str]:
    """Returns keys such as `config.section.key` that a config does not have."""
    keys = set(re.findall(r"(?<![\w/.])config((?:\.[a-z_]+)+)\b(?![\w/(])", text)) - {".json"}
    keys = {re.sub(r"\.mixture\.[a-z_]+", "", key) for key in keys}  # a part of a mixture has the keys of config.data
    return [f"config{key}" for key in sorted(keys) if not has_key(default_config(), key)]


def has_key(config: ConfigDict, key: str) -> bool:
    node = config
    for part in key.split(".")[1:]:
        if not isinstance(node, ConfigDict) or part not in node:
            return False
        node = node[part]
    return True


def find_broken_links(document: Path, text: str) -> list[str]:
    """Returns links to files or headings that do not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not anchor or anchor in read_anchors(target))):
            broken.append(link)
    return broken


def read_anchors(document: Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_errors(document: Path, text: str) -> list[str]:
    """Returns everything that the text of a document mentions but that does not exist."""
    checks = (find_missing_files, find_missing_names, find_missing_members, find_missing_keys)
    return [*(error for check in checks for error in check(text)), *find_broken_links(document, text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_mention_only_what_exists(document):
    assert not find_errors(document, document.read_text(encoding="utf-8"))


def test_missing_files_names_keys_and_links_are_detected():
    missing = [
        "caption_jax/training/lop.py",
        "lop.py",
        "caption_jax.training.lop",
        "caption_jax.metrics.ptb:Nothing",
        "RunSpec.from_confg",
        "config.data.bach_size",
        "training.md#nowhere",
    ]
    text = " ".join(f"`{name}`" for name in missing[:-1]) + f" [link]({missing[-1]}) `RunSpec.from_config` `loop.py`"
    assert find_errors(ROOT / "docs" / "data.md", text) == missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_import_the_names_they_use(document):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select=F821"]
    command += ["--config", f"builtins = {ASSUMED_NAMES}", "--stdin-filename=example.py", "-"]
    for code in read_python_blocks(document):
        process = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr


def test_example_configs_are_valid():
    examples = [code for code in read_python_blocks(EXTENDING) if "def get_config" in code]
    for code in examples:
        namespace: dict = {}
        exec(code, namespace)
        spec = RunSpec.from_config(namespace["get_config"]())
        assert spec != RunSpec()
    assert len(examples) == 3


def test_every_example_class_is_in_an_importable_file(example_files):
    assert len(example_files) == sum("class " in code for code in read_python_blocks(EXTENDING))
    for path in example_files:
        importlib.import_module(path.removesuffix(".py").replace("/", "."))
