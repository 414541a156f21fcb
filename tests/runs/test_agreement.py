"""What the processes of a run must agree on, and the message that names what differs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from small_run import get_config

from caption_jax.runs.agreement import collect_facts, compare_facts
from caption_jax.runs.experiment import Experiment, prepare_experiment
from caption_jax.specs import RunSpec
from input_pipeline.files import absolute_path


@pytest.fixture
def config(small_images) -> ConfigDict:
    config = get_config()
    config.data.root = str(small_images)
    return config


def prepare(config: ConfigDict, workdir) -> Experiment:
    return prepare_experiment(RunSpec.from_config(config), absolute_path(workdir))


def compare(*experiments: Experiment) -> str:
    reports = [
        {"host": f"host-{index}", "facts": collect_facts(experiment, trains=True)}
        for index, experiment in enumerate(experiments)
    ]
    return compare_facts(reports)


def test_equal_runs_agree_although_local_settings_differ(config, tmp_path):
    first = prepare(config, tmp_path / "run")
    config.data.workers, config.data.prefetch = 7, 9
    assert compare(first, prepare(config, tmp_path / "run")) == ""


def test_differing_config_keys_are_named_with_their_processes(config, tmp_path):
    first = prepare(config, tmp_path / "run")
    config.optimizer.learning_rate = 0.5
    config.train.steps = 7
    message = compare(first, prepare(config, tmp_path / "run"), first)
    assert message == (
        "the processes disagree: config.optimizer.learning_rate is 0.01 in processes 0, 2 (host-0, ...) and 0.5 in "
        "process 1 (host-1); config.train.steps is 160 in processes 0, 2 (host-0, ...) and 7 in process 1 (host-1): "
        "start the same command with the same code, config and data on all hosts"
    )


def test_differing_data_are_named_before_their_consequences(config, tmp_path):
    first = prepare(config, tmp_path / "run")
    train = first.split("train")
    records = [dataclasses.replace(train[0], captions=("another caption",)), *train.records[1:]]
    changed = dataclasses.replace(first, splits={**first.splits, "train": type(train)("train", records)}, resumes=True)
    message = compare(first, changed)
    assert message.startswith("the processes disagree: the split train is 8 images with 16 captions (")
    assert "and 8 images with 15 captions (" in message
    assert (
        "; the workdir is a new run in process 0 (host-0) and a run to resume in process 1 (host-1): start" in message
    )


@dataclasses.dataclass(frozen=True)
class ImageInBlock:
    """An image that shares a block with others."""

    path: Path
    block: str

    def __call__(self) -> bytes:
        return self.path.read_bytes()


def test_another_order_of_the_same_images_is_named(config, tmp_path):
    config.data.shuffle_window = 2
    first = prepare(config, tmp_path / "run")
    train = first.split("train")
    records = [dataclasses.replace(record, image=ImageInBlock(record.image, "shard")) for record in train]
    changed = dataclasses.replace(first, splits={**first.splits, "train": type(train)("train", records)})
    assert re.match(
        r"the processes disagree: the order of the training images is \w+ in process 0", compare(first, changed)
    )


def test_many_processes_are_named_by_ranges_and_many_differences_are_counted():
    values = [{f"config.key{number}": "0" if index < 6 else "1" for number in range(5)} for index in range(9)]
    message = compare_facts([{"host": f"h{index}", "facts": facts} for index, facts in enumerate(values)])
    assert "config.key0 is 0 in processes 0-5 (h0, ...) and 1 in processes 6-8 (h6, ...); config.key1" in message
    assert "config.key2" in message and "config.key3" not in message and "; and 2 more differences: start" in message
