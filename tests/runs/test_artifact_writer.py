"""The workdir of a killed run points to a complete model, which is the best according to the checkpoints."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from small_models import assert_weights_of_step, make_variables, save_checkpoint, small_description, write_model

from caption_jax.errors import WorkdirError
from caption_jax.parameters.sharding import make_mesh
from caption_jax.runs import artifact_writer
from caption_jax.runs.artifact import artifact_steps, check_no_model, read_pointer
from caption_jax.runs.artifact_writer import ArtifactWriter
from caption_jax.runs.checkpoints import Checkpoints, read_weights
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import Weights, host_copy


class Run:
    """Saves checkpoints and models as a training run does. The model of each step is better than all earlier models."""

    def __init__(self, workdir, reports_saved: bool = True):
        self._workdir = workdir
        self.checkpoints = Checkpoints(workdir)
        is_saved = self.checkpoints.is_saved if reports_saved else lambda step: False
        self.artifacts = ArtifactWriter(epath.Path(workdir), small_description(), is_saved)

    def save(self, step: int, killed_before_checkpoint: bool = False) -> None:
        """Saves the model and the checkpoint of a step, or only the model."""
        weights = jax.device_put(make_variables(step))
        self.checkpoints.save_best(step, weights, {"CIDEr-D": step / 100})
        self.artifacts.write(step, weights)
        if not killed_before_checkpoint:
            self.checkpoints.save(step, weights, {"rest": jax.numpy.zeros(2)}, {"best": step})
        self.checkpoints.wait()

    def resume(self) -> int:
        """Resumes from the newest checkpoint, and returns its step."""
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), jax.device_put(make_variables(0)))
        restored = self.checkpoints.restore(shapes, {"rest": jax.ShapeDtypeStruct((2,), np.float32)})
        self.artifacts.resume(restored.step, restored.records["best"], lambda: read_weights(self._workdir))
        return restored.step

    def close(self) -> None:
        self.checkpoints.close()
        self.artifacts.close()


def list_models(workdir) -> list[str]:
    return sorted(path.name for path in workdir.iterdir() if path.name.startswith("model-"))


def run_steps(workdir, *steps: int) -> None:
    run = Run(workdir)
    for step in steps:
        run.save(step)
    run.close()


def test_the_pointer_names_the_best_model_and_two_models_are_kept(tmp_path):
    run_steps(tmp_path, 8, 9, 10)
    assert list_models(tmp_path) == ["model-10", "model-9"]
    assert_weights_of_step(read_model(tmp_path).weights, 10)
    assert_weights_of_step(read_model(tmp_path / "model-9").weights, 9)


def test_a_kill_before_the_checkpoint_keeps_the_previous_best_model(tmp_path):
    run_steps(tmp_path, 10)
    run = Run(tmp_path)
    run.save(20, killed_before_checkpoint=True)
    run.close()
    assert list_models(tmp_path) == ["model-10", "model-20"]
    assert_weights_of_step(read_model(tmp_path).weights, 10)
    run = Run(tmp_path)
    assert run.resume() == 10
    assert list_models(tmp_path) == ["model-10"]
    run.save(20)
    run.close()
    assert_weights_of_step(read_model(tmp_path).weights, 20)


@pytest.mark.parametrize("written", ["everything", "no manifest", "part of the weights", "nothing"])
def test_resuming_repairs_a_run_killed_between_the_checkpoint_and_the_pointer_update(tmp_path, written):
    run_steps(tmp_path, 10)
    run = Run(tmp_path, reports_saved=False)  # the pointer is not updated
    run.save(20)
    run.close()
    folder = epath.Path(tmp_path) / "model-20"
    if written == "no manifest":
        (folder / "manifest.json").unlink()
    elif written == "part of the weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 8)
    elif written == "nothing":
        folder.rmtree()
    assert_weights_of_step(read_model(tmp_path).weights, 10)
    run = Run(tmp_path)
    assert run.resume() == 20
    run.close()
    assert_weights_of_step(read_model(tmp_path).weights, 20)
    assert list_models(tmp_path) == ["model-10", "model-20"]


def test_resuming_at_an_earlier_step_restores_the_best_model_of_that_step(tmp_path):
    """The newest checkpoints may have been deleted manually."""
    run_steps(tmp_path, 10)
    write_model(tmp_path, 20)
    run = Run(tmp_path)
    assert run.resume() == 10
    run.close()
    assert list_models(tmp_path) == ["model-10"]
    assert_weights_of_step(read_model(tmp_path).weights, 10)


def test_resuming_at_a_step_before_all_stored_models_writes_the_best_model_again(tmp_path):
    save_checkpoint(tmp_path, 10)
    for step in (20, 30):
        write_model(tmp_path, step)
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.resume(10, 10, lambda: read_weights(tmp_path))
    writer.close()
    assert list_models(tmp_path) == ["model-10"]
    assert_weights_of_step(read_model(tmp_path).weights, 10)


def test_more_models_are_kept_on_request(tmp_path):
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True, 3)
    for step in (10, 20, 30, 40):
        writer.write(step, jax.device_put(make_variables(step)))
    writer.close()
    assert list_models(tmp_path) == ["model-20", "model-30", "model-40"]
    assert_weights_of_step(read_model(tmp_path, 20).weights, 20)
    assert_weights_of_step(read_model(tmp_path).weights, 40)


def test_an_intact_model_is_not_written_again(tmp_path):
    pointer = write_model(tmp_path, 10)
    modification_time = (tmp_path / "model-10" / "model.safetensors").stat().st_mtime_ns
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.resume(15, 10, lambda: pytest.fail("the weights were read"))
    writer.close()
    assert read_pointer(epath.Path(tmp_path)) == pointer
    assert (tmp_path / "model-10" / "model.safetensors").stat().st_mtime_ns == modification_time


def test_models_of_a_run_killed_before_its_first_checkpoint_are_deleted(tmp_path):
    write_model(tmp_path, 5, best=False)
    check_no_model(epath.Path(tmp_path))
    ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True).delete_after(0)
    assert list_models(tmp_path) == []


def test_a_run_from_scratch_does_not_replace_an_existing_model(tmp_path):
    write_model(tmp_path, 5)
    with pytest.raises(WorkdirError, match=rf"{tmp_path} holds model-5.*no checkpoint.*--config.init_from={tmp_path}"):
        check_no_model(epath.Path(tmp_path))


def test_weights_may_be_donated_immediately_after_write_returns(tmp_path):
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    weights = jax.device_put(make_variables(3))
    update = jax.jit(lambda tree: jax.tree.map(lambda a: a + jax.numpy.ones((), a.dtype), tree), donate_argnums=0)
    writer.write(3, weights)
    for _ in range(3):
        weights = update(weights)
    jax.block_until_ready(weights)
    writer.close()
    assert_weights_of_step(read_model(tmp_path).weights, 3)


def test_sharded_parameters_are_gathered():
    mesh = make_mesh(SimpleNamespace(data=2, model=4), jax.devices())
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    array = np.arange(24, dtype=np.float32).reshape(3, 8)
    sharded = jax.device_put(array, sharding)
    assert host_copy({"a": sharded})["a"].tolist() == array.tolist()

    def make_process_array(shards):
        """Returns a stand-in for the array as seen by a process that has only some of the devices."""
        attributes = {"shape": sharded.shape, "dtype": sharded.dtype, "sharding": sharding}
        return SimpleNamespace(
            **attributes, addressable_shards=shards, is_fully_addressable=False, is_fully_replicated=False
        )

    shards = sharded.addressable_shards
    assert host_copy(make_process_array(shards[:4])).tolist() == array.tolist()
    with pytest.raises(RuntimeError, match="holds only a part of an array"):
        host_copy(make_process_array(shards[:3]))


def test_a_full_disk_stops_the_run_and_keeps_the_best_model(tmp_path, monkeypatch):
    write_model(tmp_path, 5)
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact_writer, "write_artifact", fail)
        writer.write(6, jax.device_put(make_variables(6)))
        with pytest.raises(OSError, match="No space left"):
            writer.write(7, jax.device_put(make_variables(7)))
    assert_weights_of_step(read_model(tmp_path).weights, 5)


def test_training_continues_while_a_model_is_written(tmp_path, monkeypatch):
    may_write = threading.Event()
    write = artifact_writer.write_artifact
    monkeypatch.setattr(artifact_writer, "write_artifact", lambda *args: may_write.wait(10) and write(*args))
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.write(1, jax.device_put(make_variables(1)))
    assert artifact_steps(epath.Path(tmp_path)) == []
    may_write.set()
    writer.close()
    assert_weights_of_step(read_model(tmp_path).weights, 1)


def test_models_in_a_bucket_are_written_and_deleted(bucket):
    writer = ArtifactWriter(bucket / "run", small_description(), lambda step: True)
    for step in (1, 2, 3):
        writer.write(step, jax.device_put(make_variables(step)))
    writer.close()
    assert list_models(bucket / "run") == ["model-2", "model-3"]
    assert_weights_of_step(read_model(bucket / "run").weights, 3)
    writer = ArtifactWriter(bucket / "run", small_description(), lambda step: True)
    writer.resume(2, 2, lambda: Weights(make_variables(2), 2))
    assert list_models(bucket / "run") == ["model-2"]
    assert_weights_of_step(read_model(bucket / "run").weights, 2)
