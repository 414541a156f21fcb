"""The workdir of a killed run points to a complete model, which is the best one according to its checkpoints."""

from __future__ import annotations

import errno
import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from small_models import assert_of, save_checkpoint, small_description, variables, write_model

from caption_jax.errors import WorkdirError
from caption_jax.parameters.sharding import make_mesh
from caption_jax.runs import artifact_writer
from caption_jax.runs.artifact import artifact_steps, check_no_model, read_pointer
from caption_jax.runs.artifact_writer import ArtifactWriter
from caption_jax.runs.checkpoints import Checkpoints, read_weights
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import Weights, host_copy


class Run:
    """The saving part of a training run. Each step has an evaluation that is better than all earlier ones."""

    def __init__(self, workdir, saves: bool = True):
        self._workdir = workdir
        self.checkpoints = Checkpoints(workdir)
        is_saved = self.checkpoints.is_saved if saves else lambda step: False
        self.artifacts = ArtifactWriter(epath.Path(workdir), small_description(), is_saved)

    def step(self, step: int, killed: str = "") -> None:
        """Makes a step. If killed, only the part before the checkpoint is written."""
        weights = jax.device_put(variables(step))
        self.checkpoints.save_best(step, weights, {"CIDEr-D": step / 100})
        self.artifacts.write(step, weights)
        if killed != "before the checkpoint":
            self.checkpoints.save(step, weights, {"rest": jax.numpy.zeros(2)}, {"best": step})
        self.checkpoints.wait()

    def resume(self) -> int:
        """Resumes from the newest checkpoint. Returns its step."""
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), jax.device_put(variables(0)))
        restored = self.checkpoints.restore(shapes, {"rest": jax.ShapeDtypeStruct((2,), np.float32)})
        self.artifacts.resume(restored.step, restored.records["best"], lambda: read_weights(self._workdir))
        return restored.step

    def close(self) -> None:
        self.checkpoints.close()
        self.artifacts.close()


def folders(workdir) -> list[str]:
    return sorted(path.name for path in workdir.iterdir() if path.name.startswith("model-"))


def run_to(workdir, *steps: int) -> None:
    run = Run(workdir)
    for step in steps:
        run.step(step)
    run.close()


def test_the_pointer_names_the_best_model_and_two_models_are_kept(tmp_path):
    run_to(tmp_path, 8, 9, 10)
    assert folders(tmp_path) == ["model-10", "model-9"]
    assert_of(read_model(tmp_path).weights, 10)
    assert_of(read_model(tmp_path / "model-9").weights, 9)


def test_a_kill_before_the_checkpoint_keeps_the_previous_best_model(tmp_path):
    run_to(tmp_path, 10)
    run = Run(tmp_path)
    run.step(20, killed="before the checkpoint")
    run.close()
    assert folders(tmp_path) == ["model-10", "model-20"]
    assert_of(read_model(tmp_path).weights, 10)
    run = Run(tmp_path)
    assert run.resume() == 10
    assert folders(tmp_path) == ["model-10"]
    run.step(20)
    run.close()
    assert_of(read_model(tmp_path).weights, 20)


@pytest.mark.parametrize("left", ["everything", "no manifest", "part of the weights", "nothing"])
def test_killed_after_the_checkpoint_and_before_the_switch(tmp_path, left):
    run_to(tmp_path, 10)
    run = Run(tmp_path, saves=False)  # never sees that the checkpoint has been saved
    run.step(20)
    run.close()
    folder = epath.Path(tmp_path) / "model-20"
    if left == "no manifest":
        (folder / "manifest.json").unlink()
    elif left == "part of the weights":
        (folder / "model.safetensors").write_bytes(b"\0" * 8)
    elif left == "nothing":
        folder.rmtree()
    assert_of(read_model(tmp_path).weights, 10)
    run = Run(tmp_path)
    assert run.resume() == 20
    run.close()
    assert_of(read_model(tmp_path).weights, 20)
    assert folders(tmp_path) == ["model-10", "model-20"]


def test_a_run_that_resumes_earlier_restores_its_best_model(tmp_path):
    """The newest checkpoints may have been deleted by hand."""
    run_to(tmp_path, 10)
    write_model(tmp_path, 20)
    run = Run(tmp_path)
    assert run.resume() == 10
    run.close()
    assert folders(tmp_path) == ["model-10"]
    assert_of(read_model(tmp_path).weights, 10)


def test_a_run_that_resumes_before_its_models_writes_the_best_again(tmp_path):
    save_checkpoint(tmp_path, 10)
    for step in (20, 30):
        write_model(tmp_path, step)
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.resume(10, 10, lambda: read_weights(tmp_path))
    writer.close()
    assert folders(tmp_path) == ["model-10"]
    assert_of(read_model(tmp_path).weights, 10)


def test_an_intact_model_is_not_written_again(tmp_path):
    pointer = write_model(tmp_path, 10)
    written = (tmp_path / "model-10" / "model.safetensors").stat().st_mtime_ns
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.resume(15, 10, lambda: pytest.fail("read"))
    writer.close()
    assert read_pointer(epath.Path(tmp_path)) == pointer
    assert (tmp_path / "model-10" / "model.safetensors").stat().st_mtime_ns == written


def test_files_of_a_run_killed_before_its_first_checkpoint_are_deleted(tmp_path):
    write_model(tmp_path, 5, best=False)
    check_no_model(epath.Path(tmp_path))
    ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True).delete_after(0)
    assert folders(tmp_path) == []


def test_a_run_from_scratch_does_not_replace_a_model(tmp_path):
    write_model(tmp_path, 5)
    with pytest.raises(WorkdirError, match=rf"{tmp_path} holds model-5.*no checkpoint.*--config.init_from={tmp_path}"):
        check_no_model(epath.Path(tmp_path))


def test_the_device_may_reuse_the_buffers_immediately(tmp_path):
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    weights = jax.device_put(variables(3))
    update = jax.jit(lambda tree: jax.tree.map(lambda a: a + jax.numpy.ones((), a.dtype), tree), donate_argnums=0)
    writer.write(3, weights)
    for _ in range(3):
        weights = update(weights)
    jax.block_until_ready(weights)
    writer.close()
    assert_of(read_model(tmp_path).weights, 3)


def test_sharded_parameters_are_gathered():
    mesh = make_mesh(SimpleNamespace(data=2, model=4), jax.devices())
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    array = np.arange(24, dtype=np.float32).reshape(3, 8)
    split = jax.device_put(array, sharding)
    assert host_copy({"a": split})["a"].tolist() == array.tolist()

    def of_one_process(shards):
        """The array in a process with some of the devices."""
        attributes = {"shape": split.shape, "dtype": split.dtype, "sharding": sharding}
        return SimpleNamespace(
            **attributes, addressable_shards=shards, is_fully_addressable=False, is_fully_replicated=False
        )

    rows = split.addressable_shards
    assert host_copy(of_one_process(rows[:4])).tolist() == array.tolist()
    with pytest.raises(RuntimeError, match="holds only a part of an array"):
        host_copy(of_one_process(rows[:3]))


def test_a_full_disk_stops_the_run_and_keeps_the_best_model(tmp_path, monkeypatch):
    write_model(tmp_path, 5)
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact_writer, "write_artifact", fail)
        writer.write(6, jax.device_put(variables(6)))
        with pytest.raises(OSError, match="No space left"):
            writer.write(7, jax.device_put(variables(7)))
    assert_of(read_model(tmp_path).weights, 5)


def test_training_continues_while_a_model_is_written(tmp_path, monkeypatch):
    go_on = threading.Event()
    write = artifact_writer.write_artifact
    monkeypatch.setattr(artifact_writer, "write_artifact", lambda *a: go_on.wait(10) and write(*a))
    writer = ArtifactWriter(epath.Path(tmp_path), small_description(), lambda step: True)
    writer.write(1, jax.device_put(variables(1)))
    assert artifact_steps(epath.Path(tmp_path)) == []
    go_on.set()
    writer.close()
    assert_of(read_model(tmp_path).weights, 1)


def test_models_on_a_bucket(bucket):
    writer = ArtifactWriter(bucket / "run", small_description(), lambda step: True)
    for step in (1, 2, 3):
        writer.write(step, jax.device_put(variables(step)))
    writer.close()
    assert folders(bucket / "run") == ["model-2", "model-3"]
    assert_of(read_model(bucket / "run").weights, 3)
    writer = ArtifactWriter(bucket / "run", small_description(), lambda step: True)
    writer.resume(2, 2, lambda: Weights(variables(2), 2))
    assert folders(bucket / "run") == ["model-2"]
    assert_of(read_model(bucket / "run").weights, 2)
