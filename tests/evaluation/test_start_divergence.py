"""The evaluator that measures how far a model has moved from the one it started from."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath
from scipy.special import log_softmax

from caption_jax.errors import ConfigError
from caption_jax.evaluation.split_evaluator import SplitEvaluator
from caption_jax.evaluation.start_divergence import StartDivergence
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.workdir import read_spec
from input_pipeline.special_tokens import BOS, PAD

KL = "start/kl"


def open_with_start(workdir, init_from, **fields):
    spec = read_spec(workdir)
    spec = dataclasses.replace(spec, init_from=str(init_from), evaluators={"start": StartDivergence()}, **fields)
    return open_experiment(epath.Path(workdir), spec)


def perturb(variables):
    """Returns the variables with noise in all parameters."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + rng.normal(0, 0.05, leaf.shape), leaf.dtype), variables["params"]
    )
    return {**variables, "params": params}


@pytest.mark.slow
def test_the_divergence_is_zero_at_the_start_and_equals_a_sum_over_the_vocabulary_later(small_workdir):
    experiment = open_with_start(small_workdir, small_workdir)
    evaluator, start = SplitEvaluator(experiment, "val"), read_weights(small_workdir).variables
    assert evaluator(start, 0).metrics[KL] == pytest.approx(0, abs=1e-6)
    now = perturb(start)
    result = evaluator(now, 1)
    description, divergences = experiment.description, []
    model = description.model()
    for record in experiment.split("val"):
        pixels = description.preprocessing.normalise(description.preprocessing.load(record.image)[None])
        tokens = [token for token in result.tokens[record.image_id].tolist() if token != PAD]
        inputs = np.array([[[BOS, *tokens[:-1]]]])
        logits = [np.asarray(model.apply(variables, pixels, inputs)[0, 0], np.float64) for variables in (now, start)]
        log_probs, start_log_probs = (log_softmax(values, axis=-1) for values in logits)
        divergences += (np.exp(log_probs) * (log_probs - start_log_probs)).sum(-1).tolist()
    assert len(divergences) > len(result.captions)
    assert result.metrics[KL] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert result.metrics[KL] > 0.01


def test_a_start_that_was_deleted_is_reported_and_the_other_metrics_remain(small_workdir, tmp_path, caplog):
    experiment = open_with_start(small_workdir, tmp_path / "deleted")
    with caplog.at_level("WARNING", "absl"):
        result = SplitEvaluator(experiment, "val")(read_weights(small_workdir).variables, 1)
    assert "the divergence from config.init_from is not computed: " in caplog.text
    assert KL not in result.metrics and "CIDEr-D" in result.metrics


def test_a_run_without_a_start_is_rejected(small_workdir):
    with pytest.raises(ConfigError, match=r"set config.init_from, or remove it from config.evaluators"):
        SplitEvaluator(open_with_start(small_workdir, ""), "val")
