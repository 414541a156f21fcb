"""Import redirects for modules that moved in version 0.2, kept for one release, with a DeprecationWarning.

`MOVED` contains the modules that were documented in README and docs/. `caption_jax` installs the finder, which Python
consults only for modules that no other finder can locate.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "caption_jax.captioner": "caption_jax.inference.captioner",
    "caption_jax.evaluation.bleu": "caption_jax.metrics.bleu",
    "caption_jax.evaluation.cider": "caption_jax.metrics.cider",
    "caption_jax.evaluation.diversity": "caption_jax.metrics.diversity",
    "caption_jax.evaluation.java_metrics": "caption_jax.metrics.java_metrics",
    "caption_jax.evaluation.ptb": "caption_jax.metrics.ptb",
    "caption_jax.evaluation.results": "caption_jax.metrics.results",
    "caption_jax.evaluation.retrieval": "caption_jax.metrics.retrieval_scores",
    "caption_jax.evaluation.rouge": "caption_jax.metrics.rouge",
    "caption_jax.evaluation.scores": "caption_jax.metrics.scores",
    "caption_jax.evaluation.significance": "caption_jax.metrics.significance",
    "caption_jax.models.captioning": "caption_jax.models.captioning_model",
    "caption_jax.models.efficientnet": "caption_jax.models.backbones.efficientnet",
    "caption_jax.training.metrics_file": "caption_jax.telemetry.metrics_file",
    "caption_jax.workdir": "caption_jax.runs.workdir",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder and loader that resolves former names to the module objects of the current names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        former_name = module.__name__
        warnings.warn(f"{former_name} is now {MOVED[former_name]}", DeprecationWarning, stacklevel=2)
        # `import` returns the entry of `sys.modules`, which a loader may replace.
        sys.modules[former_name] = importlib.import_module(MOVED[former_name])


def make_importable() -> None:
    """Makes the former names importable. Idempotent."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
