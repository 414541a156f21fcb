"""The architecture: dependencies in one direction, and bounded sizes of files and functions."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("caption_jax", "input_pipeline")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60  # without the docstring

# Packages that can be used on their own, and the other packages of this project that they may import.
LIFTABLE = {
    "caption_jax.ops": (),
    "caption_jax.models": ("caption_jax.ops",),
    "caption_jax.metrics": (
        "input_pipeline.annotations",
        "input_pipeline.errors",
        "input_pipeline.extras",
        "input_pipeline.files",
    ),
    "input_pipeline": (),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of both packages."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            files[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return files


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str, *, inside_functions: bool) -> set[str]:
    """Modules of this project that a module imports, except those only for type checkers."""
    return set(_imports(ast.iter_child_nodes(TREES[name]), inside_functions)) - {name}


def _imports(nodes: Iterator[ast.AST], inside_functions: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (_module(alias.name) for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if _is_ours(node.module):
                yield from (_module(f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(iter(node.orelse), inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(ast.iter_child_nodes(node), inside_functions)


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def _module(name: str) -> str:
    """The module of a dotted name, which is a module or a member of one."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def package_of(module: str) -> str:
    """`caption_jax.runs` for `caption_jax.runs.workdir`; a module directly in `caption_jax` is its own package."""
    parts = module.split(".")
    return parts[0] if parts[0] == "input_pipeline" else ".".join(parts[:2])


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the nodes of one cycle in order, with the first one repeated at the end, or an empty list."""
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for following in sorted(graph.get(path[-1], ())):
            if following in path:
                return [*path[path.index(following) :], following]
            if following not in done and (cycle := search([*path, following])):
                return cycle
        done.add(path[-1])
        return []

    return next((cycle for start in sorted(graph) if start not in done and (cycle := search([start]))), [])


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and lines, without the docstring, of every function at any depth."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}.{node.name}" if hasattr(node, "name") and isinstance(node.name, str) else prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield name, lines
        yield from functions(node, name)


def test_imports_of_modules_have_no_cycles():
    assert not cycle_in({name: imports(name, inside_functions=False) for name in MODULES})


def test_dependencies_of_packages_have_no_cycles():
    graph: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        for imported in imports(name, inside_functions=True):
            if package_of(name) != package_of(imported):
                graph[package_of(name)].add(package_of(imported))
    assert not cycle_in(graph)


@pytest.mark.parametrize("package", LIFTABLE)
def test_liftable_packages_import_only_allowed_packages(package):
    allowed = (package, *LIFTABLE[package])
    wrong = {
        f"{name} imports {imported}"
        for name in MODULES
        if _is_below(name, package)
        for imported in imports(name, inside_functions=True)
        if not any(_is_below(imported, other) for other in allowed)
    }
    assert not wrong


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_each_folder_is_a_package_that_git_does_not_ignore():
    folders = {path.parent for path in MODULES.values()}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    ignoring = subprocess.run(["git", "check-ignore", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not ignoring.stdout  # for example because of a pattern for workdirs


def test_no_two_files_share_a_name():
    modules_by_stem = defaultdict(list)
    for name, path in MODULES.items():
        exempt = path.stem.startswith("__") or _is_below(name, "caption_jax.cli")  # mode X is cli/X.py
        if _is_below(name, "caption_jax") and not exempt:
            modules_by_stem[path.stem].append(name)
    assert not {stem: names for stem, names in modules_by_stem.items() if len(names) > 1}


def test_files_have_at_most_400_lines():
    files = [*MODULES.values(), ROOT / "main.py", *(ROOT / "configs").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_functions_have_at_most_60_lines():
    lengths = dict(item for name, tree in TREES.items() for item in functions(tree, name))
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def test_the_model_has_no_platform_branches():
    assert not [
        name for name, tree in TREES.items() if _is_below(name, "caption_jax.models") and depends_on_platform(tree)
    ]


def test_files_that_depend_on_the_platform_are_listed():
    listed = re.findall(r"^    (\S+\.py) ", ast.get_docstring(TREES["caption_jax.ops"]), flags=re.MULTILINE)
    dependent = [
        str(path.relative_to(ROOT / "caption_jax"))
        for name, path in MODULES.items()
        if _is_below(name, "caption_jax") and depends_on_platform(TREES[name])
    ]
    assert listed == sorted(dependent), "the list in caption_jax/ops/__init__.py"
    assert len(listed) > 8


def depends_on_platform(tree: ast.AST) -> bool:
    """Whether code depends on the platform: `device.platform`, `sys.platform`, `lax.platform_dependent` and similar."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    names = {node.attr for node in attributes if ast.unparse(node) != "platform.platform"}  # for versions.json
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool(names & {"platform", "platform_dependent", "default_backend"})
