"""Dependencies between packages, and lengths of files and functions."""

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
MAX_FUNCTION_LINES = 60  # excluding the docstring

# Packages that can be used without the rest of the project, and the modules outside them that they may import.
STANDALONE_PACKAGES = {
    "caption_jax.ops": (),
    "caption_jax.models": ("caption_jax.ops",),
    "caption_jax.metrics": (
        "caption_jax.telemetry.progress",
        "caption_jax.telemetry.progress_displays",
        "input_pipeline.annotations",
        "input_pipeline.errors",
        "input_pipeline.extras",
        "input_pipeline.files",
        "input_pipeline.image_formats",
        "input_pipeline.limits",
        "input_pipeline.safe_open",
        "input_pipeline.spec_checks",
        "input_pipeline.terminal_text",
    ),
    "input_pipeline": (),
}

# Modules of serving that can be used without its HTTP server.
SERVING_CORE = (
    *("batcher", "caption_request", "caption_service", "embedding_request", "refusals"),
    *("served_embedding", "served_index", "served_model", "stored_images"),
)


def find_modules() -> dict[str, Path]:
    """Returns the file of every module of both packages, by dotted name."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            files[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return files


MODULES = find_modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def find_imports(name: str, *, inside_functions: bool) -> set[str]:
    """Returns the modules of this project that a module imports, except those imported only for type checking."""
    return set(_walk_imports(ast.iter_child_nodes(TREES[name]), inside_functions)) - {name}


def _walk_imports(nodes: Iterator[ast.AST], inside_functions: bool) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (_resolve_module(alias.name) for alias in node.names if _is_project_module(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports must be absolute"
            if _is_project_module(node.module):
                yield from (_resolve_module(f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _walk_imports(iter(node.orelse), inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _walk_imports(ast.iter_child_nodes(node), inside_functions)


def _is_project_module(name: str) -> bool:
    return name.split(".")[0] in PACKAGES


def _resolve_module(name: str) -> str:
    """Returns the module of a dotted name, which is the name of a module or of one of its members."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def get_package(module: str) -> str:
    """Returns `caption_jax.runs` for `caption_jax.runs.workdir`. Modules directly in `caption_jax` are unchanged."""
    parts = module.split(".")
    return parts[0] if parts[0] == "input_pipeline" else ".".join(parts[:2])


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns the nodes of one cycle in order, with the first node repeated at the end, or an empty list."""
    visited: set[str] = set()

    def extend_path(path: list[str]) -> list[str]:
        for successor in sorted(graph.get(path[-1], ())):
            if successor in path:
                return [*path[path.index(successor) :], successor]
            if successor not in visited and (cycle := extend_path([*path, successor])):
                return cycle
        visited.add(path[-1])
        return []

    return next((cycle for start in sorted(graph) if start not in visited and (cycle := extend_path([start]))), [])


def measure_functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields the qualified name of every function at any depth, and its number of lines excluding the docstring."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}.{node.name}" if hasattr(node, "name") and isinstance(node.name, str) else prefix
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield name, lines
        yield from measure_functions(node, name)


def test_modules_have_no_import_cycles():
    assert not find_cycle({name: find_imports(name, inside_functions=False) for name in MODULES})


def test_packages_have_no_dependency_cycles():
    graph: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        for imported in find_imports(name, inside_functions=True):
            if get_package(name) != get_package(imported):
                graph[get_package(name)].add(get_package(imported))
    assert not find_cycle(graph)


@pytest.mark.parametrize("package", STANDALONE_PACKAGES)
def test_standalone_packages_import_only_allowed_modules(package):
    allowed = (package, *STANDALONE_PACKAGES[package])
    violations = {
        f"{name} imports {imported}"
        for name in MODULES
        if _is_within(name, package)
        for imported in find_imports(name, inside_functions=True)
        if not any(_is_within(imported, prefix) for prefix in allowed)
    }
    assert not violations


def test_batching_does_not_depend_on_http():
    core = {f"caption_jax.serving.{name}" for name in SERVING_CORE}
    assert core <= set(MODULES)
    imports = {module for name in core for module in find_imports(name, inside_functions=True)}
    assert {module for module in imports if _is_within(module, "caption_jax.serving")} <= core


def _is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_each_folder_is_a_package_that_git_does_not_ignore():
    folders = {path.parent for path in MODULES.values()}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    process = subprocess.run(["git", "check-ignore", *folders], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not process.stdout  # .gitignore has patterns for workdirs


def test_file_names_are_unique():
    modules_by_stem = defaultdict(list)
    for name, path in MODULES.items():
        is_exempt = path.stem.startswith("__") or _is_within(name, "caption_jax.cli")  # mode X is cli/X.py
        if _is_within(name, "caption_jax") and not is_exempt:
            modules_by_stem[path.stem].append(name)
    assert not {stem: names for stem, names in modules_by_stem.items() if len(names) > 1}


def test_files_have_at_most_400_lines():
    files = [*MODULES.values(), ROOT / "main.py", *(ROOT / "configs").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_functions_have_at_most_60_lines():
    lengths = dict(function for name, tree in TREES.items() for function in measure_functions(tree, name))
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES}


def test_models_have_no_platform_branches():
    assert not [
        name for name, tree in TREES.items() if _is_within(name, "caption_jax.models") and depends_on_platform(tree)
    ]


def test_platform_dependent_files_are_listed():
    listed = re.findall(r"^    (\S+\.py) ", ast.get_docstring(TREES["caption_jax.ops"]), flags=re.MULTILINE)
    dependent = [
        str(path.relative_to(ROOT / "caption_jax"))
        for name, path in MODULES.items()
        if _is_within(name, "caption_jax") and depends_on_platform(TREES[name])
    ]
    assert listed == sorted(dependent), "update the list in caption_jax/ops/__init__.py"
    assert len(listed) > 8


def depends_on_platform(tree: ast.AST) -> bool:
    """Whether code uses `device.platform`, `sys.platform`, `lax.platform_dependent` or `jax.default_backend`."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    names = {node.attr for node in attributes if ast.unparse(node) != "platform.platform"}  # used for versions.json
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return bool(names & {"platform", "platform_dependent", "default_backend"})
