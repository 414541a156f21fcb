"""Meshes, and the sharding of parameters, optimizer state and batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from caption_jax.parameters.sharding import (
    batch_sharding,
    make_mesh,
    parameter_shardings,
    put_batch,
    replicated,
    shardings_like,
)
from caption_jax.specs import MeshSpec, OptimizerSpec
from caption_jax.training.optimizer import make_optimizer
from caption_jax.training.saved_optimizer import to_saved

PARAMS = {
    "decoder": {
        "embedding": {"embedding": jnp.ones((12, 6))},
        "layer_0": {"out": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}},
    },
    "encoder": {"kernel": jnp.ones((3, 3, 4, 8))},
}


@pytest.mark.parametrize(
    ("data", "model", "shape"), [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, 4, (2, 4)), (4, -1, (4, 2))]
)
def test_mesh_has_the_requested_shape(data, model, shape):
    mesh = make_mesh(MeshSpec(data, model))
    assert mesh.axis_names == ("data", "model") and mesh.devices.shape == shape
    assert [device.id for device in mesh.devices.flat] == sorted(device.id for device in jax.devices())


def test_the_default_mesh_uses_all_devices():
    assert make_mesh(MeshSpec()).size == len(jax.devices())


def test_unused_devices_are_logged(caplog):
    with caplog.at_level("WARNING"):
        assert make_mesh(MeshSpec(2, 1)).size == 2
    assert "2 of 8 devices" in caplog.text
    assert make_mesh(MeshSpec(1, 1), jax.devices()[3:4]).devices.item().id == jax.devices()[3].id


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (-1, 3, "mesh.model=3 does not divide the 8 available devices"),
        (5, -1, "mesh.data=5 does not divide the 8 available devices"),
        (4, 4, "needs 16 devices, but there are 8"),
        (-1, -1, "both -1"),
        (0, 1, "mesh.data is 0"),
    ],
)
def test_invalid_mesh_shapes_are_rejected(data, model, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(MeshSpec(data, model))


def test_parameters_are_sharded_by_rules_and_replicated_otherwise():
    mesh = make_mesh(MeshSpec(4, 2))
    rules = (("decoder/embedding/.*", ("model", None)), (r".*/out/kernel", ("", "data")))
    shardings = parameter_shardings(PARAMS, rules, mesh)
    params = jax.device_put(PARAMS, shardings)
    assert params["decoder"]["embedding"]["embedding"].addressable_shards[0].data.shape == (6, 6)
    kernel = params["decoder"]["layer_0"]["out"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(6, 2)}
    assert params["encoder"]["kernel"].is_fully_replicated
    assert shardings["decoder"]["layer_0"]["out"]["bias"] == replicated(mesh)


@pytest.mark.parametrize(
    ("rules", "fragments"),
    [
        (((r".*/out/kernel", (None, "modell")),), ["'decoder/layer_0/out/kernel'", "no axis 'modell'", "data, model"]),
        (((r".*/out/kernel", ("model",)),), ["'decoder/layer_0/out/kernel'", "each of its 2 dimensions"]),
        ((("encoder/kernel", ("model", None, None, None)),), ["'encoder/kernel'", "dimension 0 of size", "2 devices"]),
        (((r".*/out/kernel", ("model", "model")),), ["only one dimension"]),
        ((("decoder/.*/kernel", (None, None)), (".*/out/kernel", (None, None))), ["all match", "exactly one"]),
        ((("decodr/.*", (None, None)),), ["'decodr/.*' matches no parameter", "'decoder"]),
    ],
)
def test_invalid_rules_are_rejected(rules, fragments):
    with pytest.raises(ValueError) as error:
        parameter_shardings(PARAMS, rules, make_mesh(MeshSpec(4, 2)))
    for fragment in fragments:
        assert fragment in str(error.value)


def test_optimizer_moments_are_sharded_like_the_parameters():
    mesh = make_mesh(MeshSpec(4, 2))
    shardings = parameter_shardings(PARAMS, (("decoder/embedding/.*", ("model", None)),), mesh)
    optimizer, _ = make_optimizer(OptimizerSpec(warmup_steps=1), PARAMS, 10)
    state = jax.eval_shape(optimizer.init, PARAMS)
    state_shardings = shardings_like({"opt_state": state, "ema": PARAMS}, PARAMS, shardings, mesh)
    saved = to_saved(state_shardings["opt_state"])
    adam = saved.moments["from_step_0"]
    assert adam.mu["decoder"]["embedding"]["embedding"].spec == PartitionSpec("model", None)
    assert state_shardings["ema"]["decoder"]["embedding"]["embedding"].spec == PartitionSpec("model", None)
    assert adam.nu["encoder"]["kernel"] == replicated(mesh) == saved.count
    initial = jax.jit(optimizer.init, out_shardings=state_shardings["opt_state"])(PARAMS)
    nu = to_saved(initial).moments["from_step_0"].nu["decoder"]["embedding"]["embedding"]
    assert nu.addressable_shards[0].data.shape == (6, 6)


def test_batches_are_sharded_over_the_data_axis_in_order():
    mesh = make_mesh(MeshSpec(4, 2))
    batch = {"image": np.arange(8 * 3, dtype=np.uint8).reshape(8, 3), "mask": np.ones(8, bool)}
    images = put_batch(batch, mesh)["image"]
    assert images.sharding == batch_sharding(mesh) and images.dtype == jnp.uint8
    np.testing.assert_array_equal(images, batch["image"])
    np.testing.assert_array_equal(images.addressable_shards[0].data, batch["image"][:2])


def test_indivisible_batches_are_rejected():
    with pytest.raises(ValueError, match=r"shape \(6, 2\).*4 data devices.*data\.batch_size"):
        put_batch({"image": np.zeros((6, 2))}, make_mesh(MeshSpec(4, 2)))


_WORKER = """
import sys
import jax
import numpy as np
from caption_jax.parameters.sharding import make_mesh, put_batch, replicated
from caption_jax.specs import MeshSpec
port, rank = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(f"localhost:{port}", 2, rank)
mesh = make_mesh(MeshSpec(-1, 2))
rows = np.arange(8, dtype=np.float32).reshape(8, 1)
batch = put_batch({"x": rows[rank * 4 : rank * 4 + 4]}, mesh)
weights = np.arange(8, dtype=np.float32).reshape(8, 1) ** 2
total = jax.jit(lambda b: (b["x"] * weights).sum(), out_shardings=replicated(mesh))(batch)
try:
    make_mesh(MeshSpec(1, 8))
except ValueError as error:
    print(f"error {error}")  # a single write, so that runtime output cannot be interleaved with it
print(f"result {batch['x'].shape} {dict(mesh.shape)} {float(total)}")
"""


@pytest.mark.slow
def test_batches_of_two_processes_are_concatenated_in_rank_order():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).resolve().parents[2]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(port), str(rank)],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    expected = float(sum(i**3 for i in range(8)))
    for output in outputs:
        assert f"result (8, 1) {{'data': 4, 'model': 2}} {expected}" in output, output
        assert "error mesh.model=8 does not divide the 4 devices of a process" in output, output
