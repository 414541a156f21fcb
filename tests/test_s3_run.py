"""A run whose workdir and data are in a bucket of S3: it is killed, resumed, evaluated and used like a local one.

The runs are separate processes with the real clients; the bucket is emulated on loopback.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import s3_emulator
from process_group import PAIR_FLAGS, reserve_address, wait_for_all
from quick_compilation import QUICK_COMPILATION_FLAGS
from resume_run import (
    ROOT,
    SHORT_RUN_FLAGS,
    RunLauncher,
    list_saved_steps,
    parse_rows,
    read_evaluation,
    read_rows,
)

BUCKET_URL = f"s3://{s3_emulator.BUCKET}"
WORKDIR = f"{BUCKET_URL}/runs/a"


@pytest.fixture(scope="module")
def emulator():
    with s3_emulator.emulate_s3() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def s3_launcher(launcher, emulator, small_images) -> RunLauncher:
    """Starts runs whose data are in the bucket."""
    emulator.upload(small_images, "data")
    return dataclasses.replace(launcher, data=f"{BUCKET_URL}/data")


def run_python(emulator, compile_cache, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK_COMPILATION_FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    environment = {**os.environ, **emulator.environment, **settings, **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def resumed_log(s3_launcher, emulator, tmp_path_factory) -> str:
    """The log of a run that was killed after its first checkpoint, and resumed to its last step."""
    log = tmp_path_factory.mktemp("logs") / "run.log"
    return s3_launcher.kill_and_complete_in_bucket(
        WORKDIR,
        log,
        lambda: bool(emulator.list_names("runs/a/checkpoints/last/5/commit_success")),
        **emulator.environment,
    )


@pytest.mark.slow
def test_a_killed_run_in_s3_resumes_to_the_result_of_a_local_run(emulator, resumed_log, short_run):
    assert f"of 20 in {WORKDIR}" in resumed_log and "resuming from step" in resumed_log
    assert parse_rows(emulator.read("runs/a/metrics.jsonl").decode()) == read_rows(short_run)
    folder = json.loads((short_run / "best_model.json").read_bytes())["folder"]
    assert json.loads(emulator.read("runs/a/best_model.json"))["folder"] == folder
    weights = f"{folder}/model.safetensors"
    assert emulator.read(f"runs/a/{weights}") == (short_run / weights).read_bytes()
    names = emulator.list_names("runs/a/")
    steps = {int(name.split("/")[4]) for name in names if "/last/" in name and "commit_success" in name}
    assert sorted(steps) == list_saved_steps(short_run) == [15, 20]
    evaluation = json.loads(emulator.read("runs/a/eval_val.json"))
    evaluation["protocol"].pop("wall_seconds")
    captions = json.loads(emulator.read("runs/a/captions_val.json"))
    assert {**evaluation, "captions": captions} == read_evaluation(short_run)
    assert {f"runs/a/{name}" for name in ("report_val.html", "sessions.json", "tokenizer/vocab.json")} <= set(names)
    assert not [name for name in names if "/.probe-" in name or "/.start-" in name or name.endswith("training.lock")]
    assert not (ROOT / "s3:").exists()


@pytest.mark.slow
def test_other_commands_read_runs_and_data_in_s3(
    emulator, resumed_log, compile_cache, small_images, searchable_workdir, tmp_path
):
    emulator.upload(searchable_workdir, "runs/searchable")
    code = (
        "import sys; from small_run import run_main\n"
        "workdir, searchable, image, index, root = sys.argv[1:]\n"
        "assert run_main('evaluate', f'--workdir={workdir}', '--split=test') == 0\n"
        "assert run_main('caption', f'--workdir={workdir}', image) == 0\n"
        "flags = [f'--workdir={searchable}', f'--index={index}']\n"
        "assert run_main('index', *flags, '--split=test', f'--config.data.root={root}') == 0\n"
        "assert run_main('search', *flags, '--query=a red box') == 0\n"
    )
    image, searchable = str(small_images / "images" / "00.png"), f"{BUCKET_URL}/runs/searchable"
    arguments = (WORKDIR, searchable, image, str(tmp_path / "index"), f"{BUCKET_URL}/data")
    process = run_python(emulator, compile_cache, code, *arguments)
    assert process.returncode == 0, process.stderr
    assert json.loads(emulator.read("runs/a/eval_test.json"))["split"] == "test"
    assert f"{image}\t" in process.stdout
    assert (tmp_path / "index" / "index.json").is_file()


@pytest.mark.slow
def test_a_bucket_without_access_is_named(emulator, compile_cache):
    code = (
        "import sys\n"
        "from caption_jax.runs.storage import check_storage; from input_pipeline.files import storage_path\n"
        "try: check_storage(storage_path(sys.argv[1]))\n"
        "except ValueError as error: print(error)"
    )
    process = run_python(emulator, compile_cache, code, "s3://nothing/run")
    expected = (
        "--workdir=s3://nothing/run: s3fs cannot access the bucket (FileNotFoundError: The specified bucket does not"
    )
    assert process.stdout.startswith(expected), process.stderr
    assert process.stdout.count("\n") == 1
    process = run_python(emulator, compile_cache, code, WORKDIR, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert process.stdout.startswith(f"--workdir={WORKDIR}: s3fs cannot access the bucket ("), process.stderr
    assert "AWS_ACCESS_KEY_ID" in process.stdout and process.stdout.count("\n") == 1


@pytest.mark.long
def test_connections_that_are_dropped_during_a_save_are_repeated(s3_launcher, emulator, short_run, tmp_path):
    workdir, log = f"{BUCKET_URL}/runs/dropped", tmp_path / "run.log"
    with s3_emulator.drop_connections(emulator, b"/runs/dropped/checkpoints/", every=10) as (proxy, dropped):
        environment = {**emulator.environment, "AWS_ENDPOINT_URL": proxy}
        assert s3_launcher.start(workdir, *SHORT_RUN_FLAGS, log=log, **environment).wait() == 0, log.read_text()
    assert len(dropped) >= 10
    assert parse_rows(emulator.read("runs/dropped/metrics.jsonl").decode()) == read_rows(short_run)


@pytest.mark.long
def test_two_processes_share_a_bucket_of_s3(s3_launcher, emulator, tmp_path):
    log, workdir = tmp_path / "run.log", f"{BUCKET_URL}/runs/two_processes"
    environment = {**emulator.environment, "JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": "2"}
    flags = [*PAIR_FLAGS, "--config.train.steps=6"]
    processes = [s3_launcher.start(workdir, *flags, log=log, **environment, JAX_PROCESS_ID=index) for index in "01"]
    assert wait_for_all(processes, 600) == [0, 0], log.read_text()
    names = emulator.list_names("runs/two_processes/")
    assert "runs/two_processes/checkpoints/last/6/commit_success.txt" in names
    assert "runs/two_processes/eval_val.json" in names and not [name for name in names if "/.start-" in name]
