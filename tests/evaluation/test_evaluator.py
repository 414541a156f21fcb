"""The example evaluator of docs/extending.md."""

from __future__ import annotations

import pytest
from small_run import ROOT, get_config

from caption_jax.evaluation.evaluator import SplitOutputs
from caption_jax.specs import RunSpec
from input_pipeline.records import Record, Split


@pytest.mark.usefixtures("example_files")
def test_the_example_evaluator_counts_words_up_to_its_limit():
    config = get_config().unlock()
    config.evaluators = {"custom": {"name": "custom.caption_length:CaptionLength", "limit": 3}}
    evaluator = RunSpec.from_config(config).evaluators["custom"]
    split = Split("val", [Record(ROOT / name, ("a caption",), name) for name in ("a.png", "b.png")])
    result = evaluator.summarise(None, {}, SplitOutputs(split, {"a.png": "two words", "b.png": "a b c d e"}, {}, {}))
    assert result.per_image["words"] == {"a.png": 2, "b.png": 3}
    assert set(result.metrics) == set(evaluator.metric_names())
    assert result.metrics["words"] == pytest.approx(2.5)
