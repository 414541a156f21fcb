"""Statements of the report about how a run was trained, for new and old workdirs."""

from __future__ import annotations

import dataclasses
import datetime
from typing import Any

import pytest

from caption_jax.evaluation.report.html.run_facts import RunFacts, describe_data, make_run_facts
from caption_jax.runs.sessions import Session
from caption_jax.specs import DataSpec
from caption_jax.telemetry.metrics_file import Row

COMMAND = "python main.py --config=configs/folder.py --workdir=runs/photos"
SESSION = Session(
    command=COMMAND,
    started="2026-11-26T08:00:00+01:00",
    splits={"train": {"images": 1500, "captions": 7500}},
    first_step=0,
    planned_steps=2000,
    last_step=1600,
    ended="2026-11-26T09:30:00+01:00",
    reason="early_stopping",
    detail="CIDEr-D had not improved for 3 evaluations",
)
ROWS = [Row(50, "train", {"loss": 2.0}), Row(400, "train", {"loss": 1.0}), Row(450, "val", {"loss": 1.0})]


def make_facts(sessions: list[Session], **changes: Any) -> RunFacts:
    arguments = {
        "train_counts": (39, 195),
        "planned_steps": 400,
        "rows": ROWS,
        "report_command": COMMAND,
        "now": datetime.datetime(2026, 11, 27, 21, 47, tzinfo=datetime.UTC),
    }
    return make_run_facts("photos", DataSpec(source="folder", root="photos"), sessions, **{**arguments, **changes})


def test_a_finished_run():
    assert make_facts([SESSION]) == RunFacts(
        name="photos",
        date="27 November 2026, 21:47 UTC",
        data="folder photos",
        training_images="1,500 images with 7,500 captions",
        trained="26 November 2026, 08:00 UTC+01:00 to 26 November 2026, 09:30 UTC+01:00",
        end="Early stopping at step 1,600 of 2,000: CIDEr-D had not improved for 3 evaluations.",
        command=COMMAND,
    )


def test_a_run_of_an_older_release():
    facts = make_facts([], report_command="caption-jax evaluate")
    assert facts.training_images == "39 images with 195 captions"  # of the open training split
    assert (facts.trained, facts.command, facts.report_command) == ("not recorded", "", "caption-jax evaluate")
    assert facts.end == "It reached its last step, 400."
    assert make_facts([], planned_steps=900).end == "Not recorded. The last logged step is 400 of 900."
    assert make_facts([], planned_steps=None).end == "Not recorded. The last logged step is 400."
    assert make_facts([], rows=[]).end == "Not recorded."
    assert make_facts([], train_counts=None).training_images == "an unknown number of images"


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"reason": "last_step", "last_step": 2000, "detail": ""}, "It reached its last step, 2,000."),
        (
            {"reason": "stop_requested", "last_step": 40, "detail": ""},
            "Stopped at step 40 of 2,000 by a signal or Ctrl-C; the same command resumes it.",
        ),
        (
            {"reason": "error", "last_step": None, "detail": "NonFiniteLossError: step 7: loss is nan"},
            "An error ended it: NonFiniteLossError: step 7: loss is nan",
        ),
        (
            {"reason": "", "last_step": None, "ended": "", "detail": ""},
            "It was killed, or is still running. The last logged step is 400 of 2,000.",
        ),
    ],
)
def test_each_reason_for_the_end_is_described(changes, end):
    assert make_facts([dataclasses.replace(SESSION, **changes)]).end == end


def test_the_last_session_that_trained_is_described():
    first = Session(command="first", started=SESSION.started, first_step=0, last_step=None)
    repeated = Session(command="again", started="2026-11-27T08:00:00+01:00", first_step=1600, last_step=1600)
    facts = make_facts([first, SESSION, repeated], report_command="again")
    assert (facts.command, facts.report_command) == (COMMAND, "again")
    assert facts.trained.endswith("09:30 UTC+01:00 (session 2 of 3)")


def test_every_source_of_data_is_described():
    assert describe_data(DataSpec(source="tfds", tfds_name="coco_captions")) == "TensorFlow dataset coco_captions"
    assert describe_data(DataSpec(source="webdataset", root="/data/cc3m")) == "webdataset shards in /data/cc3m"
    assert describe_data(DataSpec(source="shapes", shapes="tiny")) == "rendered scenes of shapes (tiny)"
    assert (
        describe_data(DataSpec(source="folder", captions=("a.json", "b.json"))) == "folder . (captions: a.json, b.json)"
    )
    parts = {"mine": {"source": "folder", "root": "photos"}, "coco": {"source": "parquet", "root": "C", "weight": 2.5}}
    description = "coco (weight 2.5): parquet shards in C; mine (weight 1): folder photos"
    assert describe_data(DataSpec(source="mixture", mixture=parts)) == description
