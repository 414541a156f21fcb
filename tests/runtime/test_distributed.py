"""The processes of a run are detected, join each other, and name what is missing if they cannot."""

from __future__ import annotations

import os
import socket

import metadata_server
import pytest

from caption_jax.errors import ConfigError
from caption_jax.runtime import distributed
from caption_jax.runtime.distributed import detect_cluster, join_processes

SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_LOCALID": "0",
}
JAX_VARIABLES = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "1"}
TPU_VARIABLES = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The environment of a machine that belongs to no cluster."""
    for name in list(os.environ):
        if name.startswith(("JAX_COORD", "JAX_NUM", "JAX_PROCESS", "SLURM", "OMPI", "TPU", "MEGASCALE", "GCE")):
            monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.fixture
def on_tpu(monkeypatch):
    monkeypatch.setattr(distributed, "uses_tpu", lambda: True)
    monkeypatch.setattr(distributed, "_METADATA_SECONDS", 60)  # the tests may run on a busy machine


def describe() -> tuple[int, int, str]:
    cluster = detect_cluster()
    return cluster.process_id, cluster.num_processes, cluster.coordinator


def test_a_single_machine_is_not_a_cluster(environment):
    assert detect_cluster() is None
    environment(SLURM_NTASKS="4", SLURM_JOB_ID="1")  # the script of a job, which starts the tasks
    environment(**TPU_VARIABLES)  # JAX uses the CPU
    assert detect_cluster() is None
    join_processes("auto")
    join_processes("off")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (JAX_VARIABLES, (1, 3, "10.0.0.1:1234")),
        (SLURM, (2, 4, "node1:61517")),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "node1:99"}, (2, 4, "node1:99")),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu-a,gpu-b"}, (2, 4, "gpu-a:61517")),
        ({**SLURM, "JAX_COORDINATOR_PORT": "99"}, (2, 4, "node1:99")),
        (TPU_VARIABLES, (1, 2, "host-0:8482")),
        ({**TPU_VARIABLES, "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}, (5, 6, "host-0:8482")),
    ],
)
def test_clusters_are_detected_from_variables(environment, on_tpu, variables, expected):
    environment(TPU_SKIP_MDS_QUERY="1", **variables)
    assert describe() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"JAX_COORDINATOR_ADDRESS": "h:1"},
            "JAX_COORDINATOR_ADDRESS is set, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID",
        ),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set, but not JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID"),
        (
            {**JAX_VARIABLES, "JAX_PROCESS_ID": "3"},
            "JAX_PROCESS_ID=3 must be at least 0 and less than JAX_NUM_PROCESSES=3",
        ),
        ({**JAX_VARIABLES, "JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two must be an integer"),
        ({**JAX_VARIABLES, "JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "JAX_COORDINATOR_ADDRESS=10.0.0.1 has no port"),
    ],
)
def test_incomplete_variables_are_named(environment, variables, message):
    environment(**variables)
    with pytest.raises(ConfigError, match=message):
        join_processes("auto")


def test_required_processes_that_are_not_detected_are_an_error():
    with pytest.raises(
        ConfigError, match=r"--distributed=on, but there is neither .* set JAX_COORDINATOR_ADDRESS, JAX_NUM"
    ):
        join_processes("on")


def test_the_hosts_of_a_tpu_pod_are_read_from_the_metadata_server(environment, on_tpu):
    endpoints = "a:0:10.1.0.4,b:1:10.1.0.5,c:2:10.1.0.6"
    attributes = {"agent-worker-number": "2", "worker-network-endpoints": endpoints}
    with metadata_server.serve_metadata(attributes) as address:
        environment(GCE_METADATA_IP=address)
        assert describe() == (2, 3, "10.1.0.4:8482")
        attributes["worker-network-endpoints"] = "host-0,host-1,host-2"  # the format of newer VMs
        attributes["tpu-env"] = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        assert describe() == (5, 6, "host-0:8482")
        attributes["tpu-env"] += "MEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1:8080'"
        assert describe() == (5, 6, "10.9.0.1:8482")
        environment(TPU_SKIP_MDS_QUERY="1")
        assert detect_cluster() is None


def test_a_tpu_vm_with_one_host_runs_alone(environment, on_tpu, caplog):
    with (
        metadata_server.serve_metadata(metadata_server.make_attributes(0, 1)) as address,
        caplog.at_level("INFO", "absl"),  # other tests may have set the level of this logger
    ):
        environment(GCE_METADATA_IP=address)
        join_processes("auto")
    assert f"Cloud TPU (metadata server {address}); running as a single process" in caplog.text


def test_a_tpu_vm_without_a_metadata_server_runs_alone_with_a_warning(environment, on_tpu, caplog):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    environment(GCE_METADATA_IP=address)
    assert detect_cluster() is None
    (record,) = caplog.records
    assert f"the metadata server of this TPU VM ({address}) does not list the hosts" in record.getMessage()
