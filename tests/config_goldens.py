"""Golden files with the resolved specs of the configs, `tests/golden/configs/NAME.txt` for `configs/NAME.py`.

Their diff shows which configs a changed default affects. After an intended change, rewrite them with:

    python -m tests.config_goldens
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from caption_jax.specs import DatasetFacts, RunSpec, resolve
from caption_jax.specs.conversion import as_lines

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "golden" / "configs"
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "workdir")
DATASET = DatasetFacts(train_images=6000, caption_lengths=np.full(30_000, 22))


@functools.cache
def load_config(name: str) -> ConfigDict:
    """Loads the config of `configs/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if config.model.context.max_texts:
        config.data.context = "index"  # a required value
    return config


def load_spec(name: str) -> RunSpec:
    """Loads the config of `configs/NAME.py` with values fitted to `DATASET`."""
    return resolve(RunSpec.from_config(load_config(name)), DATASET)


def render_golden(name: str) -> str:
    """Returns the resolved spec of a config, as `--dry_run` prints it for `DATASET`."""
    spec = load_spec(name)
    return "\n".join([f"# configs/{name}.py on {DATASET.train_images} training images", *as_lines(spec), ""])


def golden_path(name: str) -> Path:
    """Returns the path of the golden file of a config."""
    return GOLDENS / f"{name}.txt"


def rewrite_goldens() -> None:
    """Writes the golden files of all configs, and deletes those of configs that no longer exist."""
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for path in GOLDENS.glob("*.txt"):
        path.unlink()
    for name in CONFIGS:
        golden_path(name).write_text(render_golden(name), encoding="utf-8")


if __name__ == "__main__":
    rewrite_goldens()
