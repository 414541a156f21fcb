"""The documents mention only existing files, modules, classes, config keys and sections, and their code runs."""

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
from doc_examples import EXTENDING, python_blocks
from ml_collections import ConfigDict
from small_run import ROOT

from caption_jax.config import default_config
from caption_jax.specs import RunSpec

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("caption_jax", "input_pipeline", "benchmarks")
FOLDERS = (*PACKAGES, "configs", "tests")
EXAMPLES = "own/"  # files of docs/extending.md
READERS_OWN = ["config", "WORKDIR", "pil_image", "array"]  # names that examples assume


@functools.cache
def sources() -> dict[Path, ast.Module]:
    paths = [ROOT / "main.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def quoted(text: str) -> str:
    """The text in backticks outside code blocks, one item per line."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(re.findall(r"`([^`\n]+)`", prose))


def missing_files(text: str) -> list[str]:
    """Paths of Python files in backticks that are in neither the checkout nor `caption_jax`, except configs."""
    names = {path.name for path in sources()}
    missing = [path for path in re.findall(r"configs/\w+\.py", text) if not (ROOT / path).is_file()]
    for path in re.findall(r"[\w/.-]+\.py\b", quoted(text)):
        exists = (ROOT / path).is_file() or (ROOT / "caption_jax" / path).is_file() if "/" in path else path in names
        if not exists and not path.startswith(EXAMPLES):
            missing.append(path)
    return missing


def missing_names(text: str) -> list[str]:
    """Dotted names, `caption_jax.module.Class` or `caption_jax.module:Class`, that do not exist."""
    pattern = rf"(?<![\w/])(?:{'|'.join(PACKAGES)})(?:\.\w+)+(?::\w+)?(?!/)"
    return [name for name in dict.fromkeys(re.findall(pattern, text)) if not resolves(name)]


def resolves(name: str) -> bool:
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


def missing_members(text: str) -> list[str]:
    """`Class.member` in backticks that no class of this project has."""
    named = re.findall(r"\b[A-Z]\w*[a-z]\w*\.\w+", quoted(text))
    return [name for name in named if name not in all_members()]


@functools.cache
def all_members() -> frozenset[str]:
    return frozenset(f"{cls}.{member}" for tree in sources().values() for cls, member in members(tree))


def members(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Classes, each with its methods, fields and annotated attributes."""
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef):
            for node in ast.walk(cls):
                if isinstance(node, ast.FunctionDef):
                    yield cls.name, node.name
                elif isinstance(node, ast.AnnAssign):
                    yield cls.name, ast.unparse(node.target).removeprefix("self.")


def missing_keys(text: str) -> list[str]:
    """Keys `config.section.key` that a config does not have."""
    keys = set(re.findall(r"(?<![\w/])config((?:\.[a-z_]+)+)\b(?![\w/(])", text)) - {".json"}
    return [f"config{key}" for key in sorted(keys) if not has_key(default_config(), key)]


def has_key(config: ConfigDict, key: str) -> bool:
    node = config
    for part in key.split(".")[1:]:
        if not isinstance(node, ConfigDict) or part not in node:
            return False
        node = node[part]
    return True


def broken_links(document: Path, text: str) -> list[str]:
    """Links to missing files or headings."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, section = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and not (target.exists() and (not section or section in anchors(target))):
            broken.append(link)
    return broken


def anchors(document: Path) -> set[str]:
    """The anchors of headings on GitHub."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def faults(document: Path, text: str) -> list[str]:
    checks = (missing_files, missing_names, missing_members, missing_keys)
    return [*(fault for check in checks for fault in check(text)), *broken_links(document, text)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_everything_that_a_document_mentions_exists(document):
    assert not faults(document, document.read_text(encoding="utf-8"))


def test_missing_items_are_detected():
    wrong = [
        "caption_jax/training/lop.py",
        "lop.py",
        "caption_jax.training.lop",
        "caption_jax.metrics.ptb:Nothing",
        "RunSpec.from_confg",
        "config.data.bach_size",
        "training.md#nowhere",
    ]
    text = " ".join(f"`{name}`" for name in wrong[:-1]) + f" [there]({wrong[-1]}) `RunSpec.from_config` `loop.py`"
    assert faults(ROOT / "docs" / "data.md", text) == wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_examples_import_the_names_they_use(document):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--quiet", "--select=F821"]
    command += ["--config", f"builtins = {READERS_OWN}", "--stdin-filename=example.py", "-"]
    for code in python_blocks(document):
        process = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout + process.stderr


def test_configs_of_the_examples_are_valid():
    configs = [code for code in python_blocks(EXTENDING) if "def get_config" in code]
    for code in configs:
        scope: dict = {}
        exec(code, scope)
        spec = RunSpec.from_config(scope["get_config"]())
        assert spec != RunSpec()
    assert len(configs) == 3


def test_every_example_class_is_in_a_file(example_files):
    assert len(example_files) == sum("class " in code for code in python_blocks(EXTENDING))
    for name in example_files:
        importlib.import_module(name.removesuffix(".py").replace("/", "."))
