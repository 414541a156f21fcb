"""Golden files of the configs: the resolved spec of `configs/NAME.py` is `tests/golden/configs/NAME.txt`.

A changed default shows in the diff of these files. After an intended change, rewrite them with:

    python -m tests.config_goldens
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from caption_jax.specs import DatasetFacts, RunSpec, resolve
from caption_jax.specs.conversion import as_lines

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "golden" / "configs"
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "workdir")
ASSUMED = DatasetFacts(train_images=6000)


@functools.cache
def named_config(name: str) -> ConfigDict:
    """The config of `configs/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if config.model.context.max_texts:
        config.data.context = "index"  # a required value
    return config


def golden_text(name: str) -> str:
    """Returns the config as `--dry_run` prints it for a data set of the assumed size."""
    spec = resolve(RunSpec.from_config(named_config(name)), ASSUMED)
    return "\n".join([f"# configs/{name}.py on {ASSUMED.train_images} training images", *as_lines(spec), ""])


def golden_path(name: str) -> Path:
    """Returns the path of the golden file."""
    return GOLDENS / f"{name}.txt"


def rewrite() -> None:
    """Writes the files of all configs and deletes all others."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for path in GOLDENS.glob("*.txt"):
        path.unlink()
    for name in CONFIGS:
        golden_path(name).write_text(golden_text(name), encoding="utf-8")


if __name__ == "__main__":
    rewrite()
