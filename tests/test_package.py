"""Import dependencies, contents of the wheel and consistency of packaging files."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import caption_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()
CONSTRAINTS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]


def find_imported_modules(statement: str) -> set[str]:
    """Returns the top-level modules that a new interpreter has loaded after running a statement."""
    code = f"{statement}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import caption_jax; dir(caption_jax)", {"jax", "flax", "tensorflow", "transformers", "numpy"}),
        ("import caption_jax.cli.command", {"jax", "flax", "tensorflow", "transformers", "numpy"}),
        ("import caption_jax.metrics; caption_jax.score", {"jax", "flax", "tensorflow", "transformers"}),
        ("import caption_jax.runs.checkpoints", {"optax", "clu", "tensorflow", "transformers"}),
        ("import caption_jax; caption_jax.load", {"optax", "clu", "tensorflow", "matplotlib", "orbax"}),
        (
            "import caption_jax.models.text_encoder, caption_jax.pretrained.roberta_weights",
            {"transformers", "torch", "huggingface_hub", "optax", "clu", "tensorflow", "orbax"},
        ),
        ("import caption_jax.models; caption_jax.models.ImageCaptioningModel", {"optax", "clu", "tensorflow", "orbax"}),
        (
            "import caption_jax.inference.captioner",
            {"flax", "optax", "clu", "tensorflow", "transformers", "grain", "orbax"},
        ),
        (
            "import caption_jax.training.loop",
            {"tensorflow", "transformers", "clu", "matplotlib", "jinja2", "pycocoevalcap"},
        ),
        (
            "from caption_jax.evaluation import final_evaluation, tuning; "
            "from caption_jax.evaluation.report import terminal; "
            "from caption_jax.evaluation.report.html import examples",
            {"tensorflow", "clu", "matplotlib", "jinja2"},
        ),
        ("import caption_jax.telemetry.metrics_file, caption_jax.telemetry.clock", {"clu", "tensorflow"}),
    ],
)
def test_imports_do_not_load_unused_packages(statement, unwanted):
    assert not find_imported_modules(statement) & unwanted


def test_all_data_files_are_in_package_data():
    """Setuptools adds modules automatically, but other files only if pyproject.toml lists them."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {
        path
        for package in ("caption_jax", "input_pipeline")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert files == packaged and ROOT / "caption_jax/evaluation/report/html/templates/report.html.j2" in packaged


def test_a_wheel_has_the_package_version_and_contains_configs_and_type_markers(tmp_path):
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0")[:-1]:
        if name.startswith(("caption_jax/", "input_pipeline/", "configs/")) or "/" not in name:
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "tree" / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert {path.name for path in (tmp_path / "site").iterdir()} == {
        "caption_jax",
        "input_pipeline",
        f"caption_jax-{caption_jax.__version__}.dist-info",
    }
    files = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert {"caption_jax/py.typed", "input_pipeline/py.typed"} <= files
    assert {f"caption_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.py")} <= files
    script = (
        "from caption_jax.config_files import find_config; from caption_jax.configs import folder_search; "
        "print(find_config('configs/coco.py')); print(folder_search.__file__); folder_search.get_config()"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    configs = tmp_path / "site" / "caption_jax" / "configs"
    assert process.stdout.splitlines() == [str(configs / "coco.py"), str(configs / "folder_search.py")]


def test_public_names_exist():
    for name in caption_jax.__all__:
        assert getattr(caption_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'captoin'"):
        caption_jax.captoin  # noqa: B018


def read_requirements() -> list[Requirement]:
    """Returns the requirements of the package and of all extras."""
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    parsed = [Requirement(text) for group in groups for text in group]
    return [requirement for requirement in parsed if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_pinned_releases_run_on_the_first_release_of_each_python(python):
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in CONSTRAINTS}
    for distribution in importlib.metadata.distributions():
        if pins.get(canonicalize_name(distribution.name)) == distribution.version:
            required = SpecifierSet(distribution.metadata["Requires-Python"] or "")
            assert required.contains(python), f"{distribution.name} {distribution.version} requires Python {required}"


def test_constraints_pin_one_release_per_requirement():
    pins = {}
    for line in CONSTRAINTS:
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
        assert match, f"constraints.txt: {line!r} is not of the form name==version"
        assert match[1] not in pins, f"constraints.txt pins {match[1]} twice"
        pins[match[1]] = match[2]
    for requirement in read_requirements():
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"constraints.txt: {pin} does not satisfy {requirement}"


@pytest.mark.parametrize(
    ("system", "machine", "package"),
    [
        ("linux", "x86_64", "tensorflow-cpu"),
        ("linux", "aarch64", "tensorflow"),
        ("darwin", "arm64", "tensorflow"),
    ],
)
def test_each_platform_requires_one_tensorflow_package(system, machine, package):
    platform = {"sys_platform": system, "platform_machine": machine}
    required = [
        requirement.name
        for requirement in map(Requirement, PROJECT["optional-dependencies"]["train"])
        if requirement.name in ("tensorflow", "tensorflow-cpu")
        and (requirement.marker is None or Marker(str(requirement.marker)).evaluate(platform))
    ]
    assert required == [package]


def test_the_test_extra_does_not_require_torch():
    names = {Requirement(text).name for text in PROJECT["optional-dependencies"]["test"]}
    assert not names & {"torch", "torchvision", "timm"}


def read_readme_commands() -> list[str]:
    """Returns the README's commands that create a virtual environment."""
    return re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)


def test_readme_has_one_command_to_train_and_one_to_test():
    train, test = read_readme_commands()
    assert "main.py --config=configs/shapes.py --workdir=" in train
    assert test.endswith("-m pytest")
    for command in (train, test):
        assert "-c constraints.txt" in command
    assert "-e '.[train]'" in train and "-e '.[test]'" in test
    for config in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / config).is_file(), f"README.md mentions {config}, which does not exist"


def test_readme_fits_on_two_screens():
    assert len(README.splitlines()) <= 115


def test_ci_runs_the_test_command_of_the_readme_and_fails_if_a_step_fails(tmp_path):
    """Runs .ci/run with fake commands that record their arguments."""
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -E '([^']+)' README.md", script)[1]
    assert re.findall(pattern, README, flags=re.MULTILINE) == [read_readme_commands()[1]]
    (tmp_path / "bin").mkdir()
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "run").write_text(script)
    (tmp_path / "README.md").write_text(README)
    fake_python = tmp_path / "bin" / "python3"
    fake_python.write_text(FAKE_PYTHON.format(log=tmp_path / "log", failing=tmp_path / "failing"))
    fake_python.chmod(0o755)

    def run_ci() -> tuple[int, list[str]]:
        (tmp_path / "log").write_text("")
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
        command = ["bash", str(tmp_path / "ci" / "run")]
        process = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        return process.returncode, (tmp_path / "log").read_text().splitlines()

    status, calls = run_ci()
    assert status == 0
    slow_tests = "python -m pytest -m slow --durations=60"
    assert calls[-3:] == ["pip install -c constraints.txt -e .[test]", "python -m pytest", slow_tests]
    assert {"ruff check .", "ruff format --check ."} <= set(calls)
    assert not list(tmp_path.glob("tmp.*")), ".ci/run did not delete its environment"
    for command in (
        "python -m pytest",
        slow_tests,
        "ruff check .",
        "ruff format --check .",
        "pip install -c constraints.txt -e .[test]",
    ):
        (tmp_path / "failing").write_text(command)
        assert run_ci()[0] != 0, f"{command} failed, but .ci/run succeeded"


FAKE_PYTHON = """#!/bin/bash
name=$(basename "$0")
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin"
    for tool in python pip ruff; do cp "$0" "$3/bin/$tool"; done
elif [ "$name" != python3 ]; then
    echo "$name $*" >> {log}
    [ "$(cat {failing} 2>/dev/null)" != "$name $*" ]
fi
"""
