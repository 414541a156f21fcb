"""A process that can import only the packages of the base installation, whatever else is installed.

`outcomes()` starts it. As a script, it prints the outcomes of its imports and calls as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@functools.cache
def outcomes() -> dict[str, dict[str, str]]:
    """Returns two tables of errors: "modules" by name, and "uses" of optional packages. No error is ""."""
    ours = {"caption_jax", "input_pipeline"}
    blocked = sorted(set(importlib.metadata.packages_distributions()) - base_modules() - ours)
    command = [sys.executable, __file__]
    process = subprocess.run(command, input=json.dumps(blocked), cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def base_modules() -> set[str]:
    """Top-level modules of the requirements in pyproject.toml outside the extras, and of their requirements."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    visited: set[tuple[str, str]] = set()

    def add(text: str, extra: str) -> None:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            return
        for requested_extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), requested_extra)
            if key not in visited:
                visited.add(key)
                for dependency in importlib.metadata.requires(key[0]) or ():
                    add(dependency, requested_extra)

    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        add(text, "")
    names = {name for name, _ in visited}
    distributions = importlib.metadata.packages_distributions()
    return {module for module, owners in distributions.items() if names & set(map(canonicalize_name, owners))}


class _Blocker:
    """An import hook that hides some top-level modules."""

    def __init__(self, blocked: list[str]):
        self._blocked = frozenset(blocked)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self._blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def our_modules() -> list[str]:
    """Returns the names of all modules of the two packages."""
    files = [file for package in ("caption_jax", "input_pipeline") for file in (ROOT / package).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return sorted(name for name in names if not name.endswith("__main__"))


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:  # all errors are reported
        return f"{type(error).__name__}: {error}"
    return ""


def _uses() -> dict[str, Callable[[], object]]:
    """Uses of optional packages. Each name starts with that of the package."""
    from caption_jax.evaluation.final_evaluation import evaluate_split
    from caption_jax.evaluation.tuning import tune_split
    from caption_jax.files import absolute
    from caption_jax.metrics.java_metrics import unavailable_metrics
    from caption_jax.models.backbones.efficientnet_variants import get_variant
    from caption_jax.planning.topology import parse_topology
    from caption_jax.pretrained.roberta_weights import load_roberta
    from caption_jax.pretrained.weight_files import open_weights
    from caption_jax.pretrained.weight_sources import locate_weights
    from caption_jax.specs import DataSpec, RunSpec
    from caption_jax.telemetry.event_files import EventFiles
    from caption_jax.training.dry_run import dry_run
    from caption_jax.training.loop import train_and_evaluate
    from input_pipeline.sources import open_splits
    from input_pipeline.tokenizer import Tokenizer

    def write_events() -> None:
        with contextlib.closing(EventFiles("none")) as events:
            events.scalars(1, {"loss": 1.0})

    def open_keras() -> None:
        with tempfile.NamedTemporaryFile(suffix=".h5") as file:
            open_weights(Path(file.name), get_variant("b0"))

    def java() -> None:
        raise RuntimeError(unavailable_metrics()["METEOR"])

    return {
        "grain of training": lambda: train_and_evaluate(RunSpec(), "none"),
        "grain of a dry run": lambda: dry_run(RunSpec(), "none"),
        "grain of evaluation": lambda: evaluate_split(None, "val"),
        "grain of tuning": lambda: tune_split(None, "val"),
        "tensorflow": write_events,
        "tensorflow_datasets": lambda: open_splits(DataSpec(source="tfds", tfds_name="coco_captions")),
        "tensorflow_datasets of shapes": lambda: open_splits(DataSpec(source="shapes")),
        "jinja2": lambda: importlib.import_module("caption_jax.evaluation.report.html.page"),
        "matplotlib": lambda: importlib.import_module("caption_jax.evaluation.report.plots"),
        "h5py": open_keras,
        "pycocoevalcap": java,
        "libtpu": parse_topology("v5e:2x2").devices,
        "gcsfs": lambda: absolute("gs://bucket/run"),
        "s3fs": lambda: absolute("s3://bucket/run"),
        # tokenizers, in the base installation, still requires it, so it is blocked separately.
        "huggingface_hub of RoBERTa": lambda: load_roberta("someone/model"),
        "huggingface_hub of encoders": lambda: locate_weights("someone/model", (), "nothing"),
        "huggingface_hub of tokenizers": lambda: Tokenizer.from_hub("someone/model"),
    }


def main() -> None:
    """Prints the tables."""
    blocked = json.load(sys.stdin)
    sys.meta_path.insert(0, _Blocker(blocked))
    sys.path.insert(0, str(ROOT))
    modules = {name: _error_of(functools.partial(importlib.import_module, name)) for name in our_modules()}
    hub = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]
    for name in hub:
        del sys.modules[name]
    sys.meta_path.insert(0, _Blocker(["huggingface_hub"]))
    uses = {name: _error_of(call) for name, call in _uses().items()}
    print(json.dumps({"modules": modules, "uses": uses}))


if __name__ == "__main__":
    main()
