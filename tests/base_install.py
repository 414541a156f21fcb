"""Imports and calls in a process that can import only the packages of the base installation.

`collect_errors()` starts the process. Run as a script, this file prints the errors as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def collect_errors() -> dict[str, dict[str, str]]:
    """Runs this file as a script in a new process.

    Returns:
        "modules": the error of importing each of our modules, by module name. "calls": the error of each call that
        requires an optional package, by package and caller. The error is "" if the import or call succeeds.
    """
    command, blocked = [sys.executable, __file__], json.dumps(find_optional_modules())
    process = subprocess.run(command, input=blocked, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def run_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Runs `caption-jax` in a new process that can import only the packages of the base installation.

    Args:
        arguments: arguments of the command.
        cwd: working directory.
    """
    lines = [
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]",
        f"import base_install; base_install.block({find_optional_modules()!r})",
        "from caption_jax.cli import command; command.run('caption-jax')",
    ]
    process = [sys.executable, "-c", "\n".join(lines), *map(str, arguments)]
    return subprocess.run(process, cwd=cwd, capture_output=True, text=True, check=False)


def find_optional_modules() -> list[str]:
    """Returns the installed top-level modules that the base installation does not include."""
    available = {*find_base_modules(), "caption_jax", "input_pipeline"}
    return sorted(set(importlib.metadata.packages_distributions()) - available)


def block(modules: list[str]) -> None:
    """Makes top-level modules appear to be missing, both to imports and to `importlib.util.find_spec`."""
    sys.meta_path.insert(0, _Blocker(modules))
    find_spec = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name in modules else find_spec(name, package)


def find_base_modules() -> set[str]:
    """Returns the top-level modules of the base requirements in pyproject.toml and of their dependencies."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    visited: set[tuple[str, str]] = set()

    def add_requirement(text: str, extra: str) -> None:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            return
        for requested_extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), requested_extra)
            if key not in visited:
                visited.add(key)
                for dependency in importlib.metadata.requires(key[0]) or ():
                    add_requirement(dependency, requested_extra)

    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        add_requirement(text, "")
    names = {name for name, _ in visited}
    distributions = importlib.metadata.packages_distributions()
    return {module for module, owners in distributions.items() if names & set(map(canonicalize_name, owners))}


class _Blocker:
    """An import hook that makes top-level modules appear to be missing."""

    def __init__(self, blocked: list[str]):
        self._blocked = frozenset(blocked)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def list_modules() -> list[str]:
    """Returns the names of all modules of `caption_jax` and `input_pipeline`."""
    files = [file for package in ("caption_jax", "input_pipeline") for file in (ROOT / package).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    # The captioners are copied to other people, and never imported.
    exported = {f"caption_jax.export.{name}_captioner" for name in ("torch", "onnx", "stablehlo")}
    return sorted(name for name in names if not name.endswith("__main__") and name not in exported)


def _capture_error(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # an error of any type is reported
        return f"{type(error).__name__}: {error}"
    return ""


def _make_calls() -> dict[str, Callable[[], object]]:
    """Returns calls that require an optional package. Each key starts with the name of the package."""
    from caption_jax.bulk.bulk_run import run_job
    from caption_jax.evaluation.final_evaluation import evaluate_split
    from caption_jax.evaluation.tuning import tune_split
    from caption_jax.export.onnx_folder import require_converter
    from caption_jax.metrics.java_metrics import unavailable_metrics
    from caption_jax.models.backbones.efficientnet_variants import get_variant
    from caption_jax.planning.topology import parse_topology
    from caption_jax.pretrained.roberta_weights import load_roberta
    from caption_jax.pretrained.weight_files import open_weights
    from caption_jax.pretrained.weight_sources import locate_weights
    from caption_jax.serving.required_packages import require_packages
    from caption_jax.specs import DataSpec, RunSpec
    from caption_jax.telemetry.event_files import EventFiles
    from caption_jax.training.dry_run import dry_run
    from caption_jax.training.loop import train_and_evaluate
    from input_pipeline.extras import EXTRAS
    from input_pipeline.files import absolute_path
    from input_pipeline.images import decode_image
    from input_pipeline.prepared.shards import read_record
    from input_pipeline.sources import open_splits
    from input_pipeline.tokenizer import Tokenizer

    def write_events() -> None:
        with contextlib.closing(EventFiles("none")) as events:
            events.scalars(1, {"loss": 1.0})

    def open_keras_weights() -> None:
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            open_weights(Path(file.name), get_variant("b0"))

    def raise_meteor_error() -> None:
        raise RuntimeError(unavailable_metrics()["METEOR"])

    return {
        "grain in training": lambda: train_and_evaluate(RunSpec(), "none"),
        "grain in a dry run": lambda: dry_run(RunSpec(), "none"),
        "grain in evaluation": lambda: evaluate_split(None, "val"),
        "grain in tuning": lambda: tune_split(None, "val"),
        "tensorflow": write_events,
        "tensorflow_datasets": lambda: open_splits(DataSpec(source="tfds", tfds_name="coco_captions")),
        "pyarrow": lambda: open_splits(DataSpec(source="parquet")),
        "tensorflow_datasets for shapes": lambda: open_splits(DataSpec(source="shapes")),
        "array_record": lambda: read_record("none", 0),
        **dict.fromkeys(EXTRAS["ray"], lambda: run_job(None, (), 1)),
        "jinja2": lambda: importlib.import_module("caption_jax.evaluation.report.html.page"),
        "matplotlib": lambda: importlib.import_module("caption_jax.evaluation.report.plots"),
        "h5py": open_keras_weights,
        "pycocoevalcap": raise_meteor_error,
        "jax2onnx": require_converter,
        "pillow_heif": lambda: decode_image(b"\0\0\0\x18ftypheic", 8),
        "libtpu": parse_topology("v5e:2x2").devices,
        "jax_cuda12_plugin": parse_topology("h100:8").devices,
        **dict.fromkeys(EXTRAS["serve"], require_packages),
        "gcsfs": lambda: absolute_path("gs://bucket/run"),
        "s3fs": lambda: absolute_path("s3://bucket/run"),
        # The base installation includes huggingface_hub and prometheus_client as dependencies of other packages, so
        # `main` blocks them separately.
        "huggingface_hub for RoBERTa": lambda: load_roberta("someone/model"),
        "huggingface_hub for encoders": lambda: locate_weights("someone/model", (), "nothing"),
        "huggingface_hub for tokenizers": lambda: Tokenizer.from_hub("someone/model"),
    }


def main() -> None:
    """Reads the names of blocked modules as JSON from standard input, and prints the errors."""
    block(json.load(sys.stdin))
    sys.path.insert(0, str(ROOT))
    modules = {name: _capture_error(functools.partial(importlib.import_module, name)) for name in list_modules()}
    indirect = ["huggingface_hub", "prometheus_client"]
    for name in [name for name in sys.modules if name.partition(".")[0] in indirect]:
        del sys.modules[name]
    block(indirect)
    calls = {name: _capture_error(call) for name, call in _make_calls().items()}
    print(json.dumps({"modules": modules, "calls": calls}))


if __name__ == "__main__":
    main()
