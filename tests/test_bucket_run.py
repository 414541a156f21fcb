"""A run whose workdir is a bucket: it is killed, resumed, evaluated and used like a run on a local disk.

The runs are separate processes with the real clients of Google Cloud Storage; the bucket is emulated on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import bucket_emulator
import pytest
from process_group import PAIR_FLAGS, reserve_address, wait_for_all
from resume_run import ROOT, SHORT_RUN_FLAGS, list_saved_steps, parse_rows, read_evaluation, read_rows

WORKDIR = f"gs://{bucket_emulator.BUCKET}/runs/a"


@pytest.fixture(scope="module")
def emulator():
    with bucket_emulator.emulate_bucket() as emulator:
        yield emulator


def run_command(emulator, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        **emulator.environment,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def resumed_log(launcher, emulator, tmp_path_factory) -> str:
    """The log of a run that was killed after its first checkpoint, and resumed to its last step."""
    log = tmp_path_factory.mktemp("logs") / "run.log"
    return launcher.kill_and_complete_in_bucket(
        WORKDIR,
        log,
        lambda: bool(emulator.list_names("runs/a/checkpoints/last/5/commit_success")),
        **emulator.environment,
    )


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_resumes_to_the_result_of_a_local_run(emulator, resumed_log, short_run):
    assert f"of 20 in {WORKDIR}" in resumed_log and "resuming from step" in resumed_log
    local = short_run
    assert parse_rows(emulator.read("runs/a/metrics.jsonl").decode()) == read_rows(local)
    pointer = emulator.read("runs/a/best_model.json")
    assert pointer == (local / "best_model.json").read_bytes()  # contains a hash of the weights and all other files
    steps = {
        int(name.split("/")[4]) for name in emulator.list_names("runs/a/checkpoints/last/") if "commit_success" in name
    }
    assert sorted(steps) == list_saved_steps(local) == [15, 20]
    evaluation = json.loads(emulator.read("runs/a/eval_val.json"))
    evaluation["protocol"].pop("wall_seconds")
    captions = json.loads(emulator.read("runs/a/captions_val.json"))
    assert {**evaluation, "captions": captions} == read_evaluation(local)
    names = emulator.list_names("runs/a/")
    for name in ("report_val.html", "loss_curve.png", "sessions.json", "tokenizer/vocab.json"):
        assert f"runs/a/{name}" in names
    assert len([name for name in names if "/tensorboard/events.out.tfevents" in name]) == 1  # the killed one is lost
    assert not [name for name in names if "/.probe-" in name or "/.start-" in name]
    assert not (ROOT / "gs:").exists()


@pytest.mark.slow
def test_other_commands_read_the_run(emulator, resumed_log, small_images):
    process = run_command(emulator, "evaluate", f"--workdir={WORKDIR}", "--split=test")
    assert process.returncode == 0, process.stderr
    assert json.loads(emulator.read("runs/a/eval_test.json"))["split"] == "test"
    image = small_images / "images" / "00.png"
    process = run_command(emulator, "caption", f"--workdir={WORKDIR}", str(image))
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{image}\t")


@pytest.mark.long
def test_two_processes_share_a_bucket(launcher, emulator, tmp_path):
    log, workdir = tmp_path / "run.log", WORKDIR.removesuffix("a") + "two_processes"
    environment = {**emulator.environment, "JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": "2"}
    flags = [*PAIR_FLAGS, "--config.train.steps=6"]
    processes = [launcher.start(workdir, *flags, log=log, **environment, JAX_PROCESS_ID=index) for index in "01"]
    assert wait_for_all(processes, 300) == [0, 0], log.read_text()
    names = emulator.list_names("runs/two_processes/")
    assert "runs/two_processes/checkpoints/last/6/commit_success.txt" in names
    assert "runs/two_processes/eval_val.json" in names and not [name for name in names if "/.start-" in name]


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_is_named_before_any_work(launcher, emulator, tmp_path):
    log = tmp_path / "run.log"
    assert launcher.start("gs://nothing/run", *SHORT_RUN_FLAGS, log=log, **emulator.environment).wait() == 1
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --workdir=gs://nothing/run: gcsfs cannot access the bucket (")
    assert "reading the data" not in log.read_text()


@pytest.mark.long
def test_a_second_run_in_a_bucket_is_refused(launcher, emulator, tmp_path):
    workdir, logs = WORKDIR.removesuffix("a") + "locked", [tmp_path / "first.log", tmp_path / "second.log"]
    first = launcher.start(workdir, *SHORT_RUN_FLAGS, log=logs[0], **emulator.environment)
    try:
        while not emulator.list_names("runs/locked/training.lock"):
            assert first.poll() is None, logs[0].read_text()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        assert launcher.start(workdir, *SHORT_RUN_FLAGS, log=logs[1], **emulator.environment).wait() == 1
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0, logs[0].read_text()
    finally:
        first.kill()
    assert f"error: --workdir={workdir} is in use by another training run (process {first.pid}" in logs[1].read_text()
    assert not emulator.list_names("runs/locked/training.lock") and not emulator.list_names("runs/locked/.training")


@pytest.mark.slow
def test_only_one_of_several_clients_creates_a_file_of_a_bucket(emulator):
    code = (
        "import sys, time; from caption_jax.runs.lock_files import create_exclusively\n"
        "from input_pipeline.files import storage_path\n"
        "file = storage_path(sys.argv[1]); file.exists(); print('ready', flush=True); sys.stdin.read()\n"
        "print(create_exclusively(file, sys.argv[2]))"
    )
    environment = {**os.environ, **emulator.environment, "JAX_PLATFORMS": "cpu"}
    file = f"gs://{bucket_emulator.BUCKET}/race/training.lock"
    options = {"cwd": ROOT, "env": environment, "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code, file, str(index)], **options) for index in range(5)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.close()
    results = [process.stdout.read().strip() for process in processes]
    for process in processes:
        process.wait()
    assert sorted(results) == ["False"] * 4 + ["True"]
    assert emulator.read("race/training.lock").decode() == str(results.index("True"))
