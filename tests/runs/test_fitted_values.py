"""Values that a run fits to its data are stored when it starts, and read when it is resumed or evaluated."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
from etils import epath
from small_run import get_config

from caption_jax.errors import WorkdirError
from caption_jax.runs import experiment as experiments
from caption_jax.runs.workdir import read_description, read_specs
from caption_jax.specs import RunSpec, replace_values

REQUESTS = {
    "train.steps": 0,
    "train.log_every": 0,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "optimizer.warmup_steps": -1,
    "optimizer.ema": -1.0,
    "data.max_length": 0,
    "decode.max_length": 0,
    "data.batch_size": 32,
}


@pytest.fixture
def configured(small_images) -> RunSpec:
    """A config whose length and intervals are fitted to eight training images."""
    spec = RunSpec.from_config(get_config())
    return replace_values(spec, {**REQUESTS, "data.root": str(small_images)})


def has_checkpoint(monkeypatch) -> None:
    """Makes all workdirs look like those of runs that can be resumed."""
    monkeypatch.setattr(experiments, "has_checkpoint", lambda workdir: True)


def test_a_new_run_stores_and_logs_its_fitted_values(configured, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        experiment = experiments.start_experiment(configured, epath.Path(tmp_path))
    spec = experiment.spec
    assert (spec.train.steps, spec.data.batch_size, spec.optimizer.warmup_steps) == (600, 8, 60)
    assert spec.data.max_length == spec.decode.max_length == max(experiment.facts.caption_lengths)
    assert read_specs(tmp_path) == (configured, spec)
    assert read_description(tmp_path).spec == spec
    assert "fitted to 8 training images: " in caplog.text and "train.steps=600" in caplog.text


def test_a_resumed_run_reads_its_values_even_if_images_were_added(configured, tmp_path, monkeypatch):
    first = experiments.start_experiment(configured, epath.Path(tmp_path / "run"))
    has_checkpoint(monkeypatch)
    folder = Path(shutil.copytree(configured.data.root, tmp_path / "data"))
    captions = folder / "captions.csv"
    captions.write_text(re.sub(",(val|test)$", ",train", captions.read_text(), flags=re.MULTILINE))
    more_images = replace_values(configured, {"data.root": str(folder)})
    resumed = experiments.start_experiment(more_images, epath.Path(tmp_path / "run"), allow_data_change=True)
    assert len(resumed.split("train")) == 12 > len(first.split("train"))
    assert resumed.spec.train == first.spec.train and resumed.spec.optimizer == first.spec.optimizer
    assert resumed.spec.data.batch_size == 8
    assert read_specs(tmp_path / "run")[1] == resumed.spec


def test_an_evaluation_with_a_config_file_uses_the_values_of_the_run(configured, tmp_path):
    experiment = experiments.start_experiment(configured, epath.Path(tmp_path))
    opened = experiments.open_experiment(epath.Path(tmp_path), configured)
    assert opened.spec.decode.max_length == experiment.spec.data.max_length
    assert opened.spec == experiment.spec


def test_another_stated_batch_size_cannot_be_resumed(configured, tmp_path, monkeypatch):
    experiments.start_experiment(configured, epath.Path(tmp_path))
    has_checkpoint(monkeypatch)
    with pytest.raises(WorkdirError, match=r"data\.batch_size: 8 -> 4"):
        experiments.start_experiment(replace_values(configured, {"data.batch_size": 4}), epath.Path(tmp_path))


def test_a_contradiction_is_logged_once_with_its_key(configured, tmp_path, caplog):
    spec = replace_values(configured, {"train.steps": 10, "optimizer.warmup_steps": 20})
    with caplog.at_level(logging.WARNING, logger="absl"):
        experiments.start_experiment(spec, epath.Path(tmp_path))
    (record,) = [record for record in caplog.records if "config.optimizer" in record.getMessage()]
    assert "config.optimizer.warmup_steps=20: the run has only 10 steps" in record.getMessage()
