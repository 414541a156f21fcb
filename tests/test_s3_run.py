"""A run whose workdir and data are in a bucket of S3: it is killed, resumed, evaluated and used like a local one.

The runs are separate processes with the real clients; the bucket is emulated on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import s3_emulator
from resume_run import ROOT, TIME_METRICS, list_saved_steps, read_evaluation, read_rows

WORKDIR = f"s3://{s3_emulator.BUCKET}/runs/a"
FLAGS = ("--config.train.steps=20", "--config.train.eval_every=10", "--config.train.checkpoint_every=5")


@pytest.fixture(scope="module")
def emulator():
    with s3_emulator.emulate_s3() as emulator:
        yield emulator


def run_command(emulator, *arguments: str) -> subprocess.CompletedProcess:
    settings = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = {**os.environ, **emulator.environment, **settings}
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def resumed_log(launcher, emulator, tmp_path_factory) -> str:
    """The log of a run that was killed after its first checkpoint, and resumed to its last step."""
    log = tmp_path_factory.mktemp("logs") / "run.log"
    process = launcher.start(WORKDIR, *FLAGS, log=log, **emulator.environment)
    try:
        while not emulator.list_names("runs/a/checkpoints/last/5/commit_success"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    resumed = launcher.start(WORKDIR, *FLAGS, log=log, **emulator.environment)
    assert resumed.wait() == 0, log.read_text()
    return log.read_text()


@pytest.mark.slow
def test_a_killed_run_in_s3_resumes_to_the_result_of_a_local_run(launcher, emulator, resumed_log, tmp_path):
    assert f"of 20 in {WORKDIR}" in resumed_log and "resuming from step" in resumed_log
    local = tmp_path / "run"
    launcher.complete(local, *FLAGS)
    assert read_s3_rows(emulator) == read_rows(local)
    pointer = emulator.read("runs/a/best_model.json")
    assert pointer == (local / "best_model.json").read_bytes()  # contains a hash of the weights and all other files
    names = emulator.list_names("runs/a/")
    steps = {int(name.split("/")[4]) for name in names if "/last/" in name and "commit_success" in name}
    assert sorted(steps) == list_saved_steps(local) == [15, 20]
    evaluation = json.loads(emulator.read("runs/a/eval_val.json"))
    evaluation["protocol"].pop("wall_seconds")
    captions = json.loads(emulator.read("runs/a/captions_val.json"))
    assert {**evaluation, "captions": captions} == read_evaluation(local)
    assert {f"runs/a/{name}" for name in ("report_val.html", "sessions.json", "tokenizer/vocab.json")} <= set(names)
    assert not [name for name in names if "/.probe-" in name or "/.start-" in name or name.endswith("training.lock")]
    assert not (ROOT / "s3:").exists()


def read_s3_rows(emulator) -> list[tuple]:
    """Returns the same as `resume_run.read_rows`, for the bucket."""
    rows = [json.loads(line) for line in emulator.read("runs/a/metrics.jsonl").splitlines()]
    return [
        (row["step"], row["split"], {key: value for key, value in row["values"].items() if key not in TIME_METRICS})
        for row in rows
    ]


@pytest.mark.slow
def test_other_commands_read_the_run(emulator, resumed_log, small_images):
    process = run_command(emulator, "evaluate", f"--workdir={WORKDIR}", "--split=test")
    assert process.returncode == 0, process.stderr
    assert json.loads(emulator.read("runs/a/eval_test.json"))["split"] == "test"
    image = small_images / "images" / "00.png"
    process = run_command(emulator, "caption", f"--workdir={WORKDIR}", str(image))
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{image}\t")


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_is_named_before_any_work(launcher, emulator, tmp_path):
    log = tmp_path / "run.log"
    assert launcher.start("s3://nothing/run", *FLAGS, log=log, **emulator.environment).wait() == 1
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --workdir=s3://nothing/run: s3fs cannot access the bucket (")
    assert "reading the data" not in log.read_text()
