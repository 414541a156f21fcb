"""Training with several processes gives the results of one process, and a signal to one process stops all.

Processes that cannot train together end at the start, with the same line in each of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import socket
import subprocess
import time
from pathlib import Path

import metadata_server
import numpy as np
import pytest
from process_group import (
    ONE_IMAGE,
    PAIR_FLAGS,
    SGD,
    SLOW_SGD,
    read_errors,
    reserve_address,
    simulate_devices,
    start_processes,
    wait_for_all,
)
from resume_run import (
    RunLauncher,
    has_trained,
    list_saved_steps,
    log_path,
    read_evaluation,
    read_rows,
)
from tiers import slow_or_long

from caption_jax.cli.exit_status import STOPPED
from caption_jax.parameters.paths import flatten
from caption_jax.runs.checkpoints import read_weights
from caption_jax.runs.loading import read_model


def start_sharing_processes(
    launcher: RunLauncher, workdir: Path, *flags: str, count: int = 2
) -> list[subprocess.Popen]:
    """Starts processes that share a workdir."""
    return start_processes(launcher, [workdir] * count, [flags] * count)


def wait_for(processes: list[subprocess.Popen], workdir: Path) -> None:
    """Waits until all processes have ended, and asserts that they succeeded."""
    assert wait_for_all(processes, timeout_seconds=900) == [0] * len(processes), log_path(workdir).read_text()


@dataclasses.dataclass(frozen=True)
class Group:
    """Several processes of a run, which are compared with a single process.

    Attributes:
        tolerance: largest difference between parameters at the end.
        steps: number of training steps.
        count: number of processes.
        variant: variant of the config, after a colon.
        common: flags of both runs.
        flags: flags that the single process does not have.
        writes_pixels: whether the processes write a pixel cache together.
    """

    tolerance: float
    steps: int = 12
    count: int = 2
    variant: str = ""
    common: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    writes_pixels: bool = False


GROUPS = {
    "default": Group(1e-4),
    "slow_sgd": Group(2e-6, common=SLOW_SGD),
    "fifty_steps": Group(2e-6, 50, common=SLOW_SGD),
    # Cached features may differ in the last bit. Adam magnifies this where gradients are rounding errors (key biases).
    "features": Group(1e-3, variant=":cached"),
    "pixels": Group(2e-6, common=SGD, flags=("--config.data.pixel_cache.use=always",), writes_pixels=True),
    "four_processes": Group(2e-6, 50, 4, common=(*SLOW_SGD, *ONE_IMAGE), flags=("--config.train.packing=blocks",)),
}


@pytest.mark.parametrize("group", slow_or_long(GROUPS.values(), ["slow_sgd"], GROUPS))
def test_several_processes_give_the_results_of_one_process(launcher, tmp_path, group):
    launcher = dataclasses.replace(launcher, config=launcher.config + group.variant)
    one, several = tmp_path / "one", tmp_path / "several"
    common = (f"--config.train.steps={group.steps}", f"--config.mesh.data={group.count}", *group.common)
    wait_for([launcher.start(one, *PAIR_FLAGS, *common, **simulate_devices(group.count))], one)
    wait_for(start_sharing_processes(launcher, several, *common, *group.flags, count=group.count), several)

    assert f"{group.count} x cpu in {group.count} processes" in log_path(several).read_text()
    # Each step is logged once, not once per process.
    assert [row[:2] for row in read_rows(several)] == [row[:2] for row in read_rows(one)]
    for (step, split, actual), (_, _, expected) in zip(read_rows(several), read_rows(one), strict=True):
        np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=0, atol=1e-5, err_msg=f"{split}, step {step}")
    actual, expected = (flatten(read_weights(workdir, "last").variables) for workdir in (several, one))
    for path in expected:
        np.testing.assert_allclose(actual[path], expected[path], rtol=0, atol=group.tolerance, err_msg=path)
    assert list_saved_steps(several) == list_saved_steps(one)
    model, best = read_model(several).weights, read_weights(several)
    assert model.step == best.step
    for path, value in flatten(best.variables).items():
        np.testing.assert_array_equal(flatten(model.variables)[path], value, err_msg=path)
    assert read_evaluation(several)["captions"] == read_evaluation(one)["captions"]
    assert len(read_evaluation(several)["captions"]) == 2
    blocks = [sorted(workdir.glob("features/*/block_*.npy")) for workdir in (one, several)]
    assert [len(paths) for paths in blocks] == [bool(group.variant)] * 2
    for expected_path, path in zip(*blocks, strict=True):
        np.testing.assert_allclose(np.load(path), np.load(expected_path), rtol=1e-5, atol=1e-5)
    assert len(list(several.glob("pixels/*/pixels.npy"))) == group.writes_pixels
    assert not (one / "pixels").exists()


@pytest.mark.usefixtures("unignored_signals")
@pytest.mark.long  # the slow tier stops two processes by a limit on steps
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_process_stops_both_and_a_single_process_can_resume(launcher, tmp_path, number):
    workdir = tmp_path / "run"
    processes = start_sharing_processes(launcher, workdir, "--config.train.steps=2000")
    while not has_trained(8)(workdir):
        assert [process.poll() for process in processes] == [None, None], log_path(workdir).read_text()
        time.sleep(0.01)
    processes[1].send_signal(number)
    assert wait_for_all(processes, 900) == [STOPPED] * 2, log_path(workdir).read_text()
    step = list_saved_steps(workdir)[-1]
    log = log_path(workdir).read_text()
    assert log.count(f"stop requested: saved step {step}") == 2
    assert 8 <= step < 2000

    single_process = launcher.start(
        workdir,
        *PAIR_FLAGS,
        f"--config.train.steps={step + 3}",
        **simulate_devices(2),
    )
    wait_for([single_process], workdir)
    assert list_saved_steps(workdir)[-1] == step + 3
    assert f"resuming from step {step}" in log_path(workdir).read_text()


@pytest.mark.slow
def test_a_limit_on_steps_stops_both_processes_and_different_limits_are_named(launcher, tmp_path):
    workdir, limit = tmp_path / "run", "--max_steps_this_run"
    processes = start_sharing_processes(launcher, workdir, "--config.train.steps=8", f"{limit}=3")
    assert wait_for_all(processes, 900) == [STOPPED] * 2, log_path(workdir).read_text()
    assert list_saved_steps(workdir) == [3]
    processes = start_processes(
        launcher, [workdir, workdir], [["--config.train.steps=8", f"{limit}={n}"] for n in (2, 4)]
    )
    assert wait_for_all(processes, 300) == [1, 1]
    host = socket.gethostname()
    assert f"{limit} is 2 in process 0 ({host}) and 4 in process 1 ({host})" in read_errors(workdir)[0]


@pytest.mark.slow
def test_processes_with_different_configs_name_the_difference_and_end(launcher, tmp_path):
    workdir = tmp_path / "run"
    flags = [["--config.train.steps=12"], ["--config.train.steps=14"]]
    assert wait_for_all(start_processes(launcher, [workdir, workdir], flags), 300) == [1, 1]
    host = socket.gethostname()
    expected = (
        f"error: the processes disagree: config.train.steps is 12 in process 0 ({host}) and 14 in process 1 ({host}): "
        "start the same command with the same code, config and data on all hosts"
    )
    assert read_errors(workdir) == [expected] * 2
    assert not list(workdir.iterdir())  # neither a run nor the file of the check


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_named_by_all_processes(launcher, tmp_path):
    workdirs = [tmp_path / "host_0" / "run", tmp_path / "host_1" / "run"]
    for workdir in workdirs:
        workdir.parent.mkdir()
    assert wait_for_all(start_processes(launcher, workdirs), 300) == [1, 1]
    (first,), (second,) = map(read_errors, workdirs)
    assert first == second
    assert first.startswith(f"error: the workdir {workdirs[0]} and {workdirs[1]} is not shared: process 1 (")
    assert "set --workdir to a bucket" in first


@pytest.mark.long
def test_a_cache_folder_that_is_not_shared_is_named_by_both(launcher, tmp_path):
    launcher, workdir = dataclasses.replace(launcher, config=launcher.config + ":cached"), tmp_path / "run"
    folders = [tmp_path / "disk_0", tmp_path / "disk_1"]
    flags = [[f"--config.data.feature_cache.folder={folder}"] for folder in folders]
    assert wait_for_all(start_processes(launcher, [workdir, workdir], flags), 300) == [1, 1]
    first, second = read_errors(workdir)
    assert first == second
    name = "config.data.feature_cache.folder"
    assert first.startswith(f"error: {name} {folders[0]} and {folders[1]} is not shared: process 1 (")


@pytest.mark.parametrize("failing", slow_or_long([0, 1], slow=[1]))
def test_the_error_of_one_process_ends_both(launcher, tmp_path, failing):
    workdir, missing = tmp_path / "run", tmp_path / "missing"
    flags = [[f"--config.data.root={missing}"] if index == failing else [] for index in range(2)]
    assert wait_for_all(start_processes(launcher, [workdir, workdir], flags), 300) == [1, 1]
    error = f"no such folder: {missing}; set config.data.root to the folder with the images and captions"
    host = socket.gethostname()
    expected = [f"error: {error}", f"error: process {failing} ({host}) failed: {error}"]
    assert sorted(read_errors(workdir)) == sorted(expected)


@pytest.mark.parametrize("failing", slow_or_long([0, 1], slow=[0]))
def test_a_process_that_cannot_open_the_data_to_evaluate_ends_both(launcher, tmp_path, small_workdir, failing):
    log, missing, flags = tmp_path / "log", tmp_path / "missing", ["--mode=evaluate", "--config.mesh.data=2"]
    environment = {"JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": "2"}
    processes = [
        launcher.start(
            small_workdir,
            *flags,
            f"--data={missing if index == failing else launcher.data}",
            log=log,
            JAX_PROCESS_ID=str(index),
            **environment,
        )
        for index in range(2)
    ]
    assert wait_for_all(processes, 300) == [1, 1], log.read_text()
    errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    own = f"no such folder: {missing}"
    (first,) = [error for error in errors if error.startswith(f"error: {own}")]
    expected = f"error: process {failing} ({socket.gethostname()}) failed: {first.removeprefix('error: ')}"
    assert sorted(errors) == sorted([first, expected])


@pytest.mark.long
def test_the_hosts_of_a_tpu_pod_find_each_other_through_the_metadata_server(launcher, tmp_path):
    workdir, hosts = tmp_path / "run", 2
    with contextlib.ExitStack() as stack:
        addresses = [
            stack.enter_context(metadata_server.serve_metadata(metadata_server.make_attributes(host, hosts)))
            for host in range(hosts)
        ]
        launcher = dataclasses.replace(launcher, script=metadata_server.__file__)
        port = reserve_address().partition(":")[2]
        processes = [
            launcher.start(
                workdir, *PAIR_FLAGS, "--config.train.steps=6", GCE_METADATA_IP=address, JAX_COORDINATOR_PORT=port
            )
            for address in addresses
        ]
        assert wait_for_all(processes, 600) == [0, 0], log_path(workdir).read_text()
    log = log_path(workdir).read_text()
    for host, address in enumerate(addresses):
        start = f"Cloud TPU (metadata server {address}): process {host} of 2, coordinator 127.0.0.1:{port}"
        assert f"{start}; waiting for 1 peer, at most 300 s" in log
    assert "2 x cpu in 2 processes" in log
    assert list_saved_steps(workdir)[-1] == 6
