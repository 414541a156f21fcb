"""The evaluator that docs/extending.md shows, as a user would copy it."""

from __future__ import annotations

import re

import pytest
from small_run import ROOT

from caption_jax.evaluation.evaluator import SplitOutputs
from input_pipeline.records import Record, Split


def test_the_evaluator_of_the_documentation_works():
    section = (ROOT / "docs" / "extending.md").read_text().split("\n## Evaluators\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(@dataclasses.*?)```", section, flags=re.DOTALL)
    scope: dict = {}
    exec("import dataclasses\nfrom caption_jax.evaluation.evaluator import Evaluator, Result\n" + code, scope)
    evaluator = scope["CaptionLength"](limit=3)
    split = Split("val", [Record(ROOT / name, ("a caption",), name) for name in ("a.png", "b.png")])
    result = evaluator.summarise(None, {}, SplitOutputs(split, {"a.png": "two words", "b.png": "a b c d e"}, {}, {}))
    assert result.per_image["words"] == {"a.png": 2, "b.png": 3}
    assert set(result.metrics) == set(evaluator.metric_names())
    assert result.metrics["words"] == pytest.approx(2.5)
