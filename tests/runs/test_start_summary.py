"""The summary of a run at its start."""

from __future__ import annotations

import dataclasses

import numpy as np
import small_run
from etils import epath

from caption_jax.runs.experiment import Experiment, prepare_experiment
from caption_jax.runs.start_summary import describe_start
from caption_jax.specs import RunSpec


def prepare(small_images, workdir) -> Experiment:
    config = small_run.get_config()
    config.data.root = str(small_images)
    return prepare_experiment(RunSpec.from_config(config), epath.Path(workdir))


def test_data_captions_vocabulary_devices_and_workdir(small_images, tmp_path):
    experiment = prepare(small_images, tmp_path / "run")
    assert describe_start(experiment).splitlines() == [
        f"training in {tmp_path / 'run'}, on 1 x cpu",
        "train       8 images  16 captions",
        "val         2 images   4 captions",
        "test        2 images   4 captions",
        "captions    at most 9 tokens; config.data.max_length=10 truncates none",
        "vocabulary  16 tokens",
    ]
    lengths = np.array([9, 10, 11, 1200])
    truncated = dataclasses.replace(experiment, facts=dataclasses.replace(experiment.facts, caption_lengths=lengths))
    line = "captions    at most 1,200 tokens; config.data.max_length=10 truncates 2 (50.0%)"
    assert line in describe_start(truncated).splitlines()


def test_a_resumed_run_has_no_caption_lengths(small_workdir, small_images):
    title, *lines = describe_start(prepare(small_images, small_workdir)).splitlines()
    assert title.startswith(f"resuming in {small_workdir}, on ")
    assert not any(line.startswith("captions") for line in lines) and "vocabulary  16 tokens" in lines
