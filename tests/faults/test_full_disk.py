"""Disks that are full, read-only or broken while a run writes: one line, and after the repair the same end.

Commands run in this process on a small disk that is full, or training runs in other processes, whose system calls fail
for one kind of file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resume_run import ROOT, RunLauncher, assert_same_result, log_path, read_rows
from small_run import run_main
from system_call_faults import Fault, fault_environment, read_faults
from tiers import slow_or_long

from caption_jax.retrieval.index import ImageIndex

STEPS = ("--config.train.steps=20", "--config.train.eval_every=10", "--config.train.checkpoint_every=5")
PIXELS = "--config.data.pixel_cache.use=always"


def read_errors(text: str) -> list[str]:
    """Returns the errors in the output of a command, and asserts that it has no traceback."""
    assert "Traceback" not in text, text
    return re.findall(r"^error: .*", text, re.MULTILINE)


# Kinds of files that the slow tier covers; the others are in the long tier (docs/testing.md).
SLOW = ("checkpoint arrays", "event files")


@pytest.fixture
def workdir(small_workdir, small_disk) -> Path:
    """A trained run on a small disk."""
    ignored = shutil.ignore_patterns("compile_cache", "tensorboard")
    return Path(shutil.copytree(small_workdir, small_disk.folder / "run", ignore=ignored))


@pytest.mark.slow
def test_an_evaluation_on_a_full_disk_keeps_the_previous_results(workdir, small_disk, capsys):
    before = {path: path.read_bytes() for path in workdir.glob("*_val*")}
    small_disk.fill()
    assert run_main("evaluate", f"--workdir={workdir}", "--split=val", reports_errors=True) == 1
    (error,) = read_errors(capsys.readouterr().err)
    assert error.startswith(f"error: {workdir}/eval_val.json: No space left on device (0 kB of 67.1 MB are free)")
    assert {path: path.read_bytes() for path in workdir.glob("*_val*")} == before
    assert not list(workdir.glob(".*.part"))
    small_disk.free()
    assert run_main("evaluate", f"--workdir={workdir}", "--split=val") == 0
    after = json.loads((workdir / "eval_val.json").read_text())
    earlier = json.loads(before[workdir / "eval_val.json"])
    assert after["images"] == earlier["images"] and after["metrics"] == earlier["metrics"]


@pytest.mark.slow
def test_a_full_disk_does_not_prevent_captions(workdir, small_disk, small_images, capsys):
    small_disk.fill()
    image = small_images / "images" / "00.png"
    assert run_main("caption", f"--workdir={workdir}", str(image), reports_errors=True) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{image}\t") and not read_errors(captured.err)


@pytest.mark.slow
def test_an_index_on_a_full_disk_keeps_its_images_and_is_completed_later(
    searchable_workdir, distinct_images, small_disk, capsys
):
    index = small_disk.folder / "index"
    images = [str(distinct_images / "images" / f"{number:02d}.png") for number in range(4)]
    arguments = ["index", f"--workdir={searchable_workdir}", f"--index={index}", "--captions=none"]
    assert run_main(*arguments, *images[:2]) == 0
    small_disk.fill()
    assert run_main(*arguments, *images, reports_errors=True) == 1
    (error,) = read_errors(capsys.readouterr().err)
    assert f"error: {index}/" in error and "No space left on device" in error
    assert len(ImageIndex(index)) == 2
    small_disk.free()
    assert run_main(*arguments, *images) == 0
    complete = small_disk.folder / "complete"
    assert run_main("index", f"--workdir={searchable_workdir}", f"--index={complete}", "--captions=none", *images) == 0
    assert [entry.path for entry in ImageIndex(index).entries()] == images
    assert np.array_equal(ImageIndex(index).vectors, ImageIndex(complete).vectors)


@pytest.mark.slow
def test_captions_that_cannot_be_written_end_the_command_with_one_line(small_workdir, small_images):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "main.py", "caption", f"--workdir={small_workdir}", str(small_images / "images")]
    with open("/dev/full", "w") as output:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1
    assert read_errors(result.stderr) == [
        "error: cannot write the output: No space left on device: free space, then run the same command again"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["evaluate", "train"])
def test_a_read_only_workdir_is_named_before_any_work(workdir, small_disk, small_images, capsys, mode):
    small_disk.make_read_only()
    try:
        config = [] if mode == "evaluate" else ["--config=tests/small_run.py"]
        data = f"--config.data.root={small_images}"
        assert run_main(mode, *config, f"--workdir={workdir}", data, reports_errors=True) == 1
    finally:
        small_disk.make_read_only(False)
    captured = capsys.readouterr()
    (error,) = read_errors(captured.err)
    assert error.startswith(f"error: --workdir={workdir}: no permission to write") and "reading" not in captured.err


def test_a_run_that_does_not_fit_on_the_disk_is_refused_with_the_sizes(small_disk, small_images, capsys):
    small_disk.fill(free_bytes=120_000)
    arguments = [f"--workdir={small_disk.folder / 'new'}", f"--config.data.root={small_images}"]
    assert run_main("train", "--config=tests/small_run.py", *arguments, reports_errors=True) == 1
    (error,) = read_errors(capsys.readouterr().err)
    assert re.search(r"no space for a checkpoint: [\d.]+ kB are needed \([\d.]+ kB per checkpoint, ", error), error


@pytest.fixture(scope="module")
def launchers(small_images, compile_cache) -> dict[str, RunLauncher]:
    """Launchers of runs with and without a feature cache."""
    plain = RunLauncher(small_images, compile_cache)
    return {"plain": plain, "cached": RunLauncher(small_images, compile_cache, config=f"{plain.config}:cached")}


@pytest.fixture(scope="module")
def undisturbed(launchers, tmp_path_factory) -> dict[str, Path]:
    """The workdirs of undisturbed runs."""
    workdirs = {name: tmp_path_factory.mktemp("runs") / name for name in launchers}
    for name, launcher in launchers.items():
        launcher.complete(workdirs[name], *STEPS)
    return workdirs


# Kind of file -> the run that writes it, the fault, and the file in the error line.
ENDING = {
    "lock": ("plain", Fault("write", "*/.training.lock*"), "training.lock"),
    "config": ("plain", Fault("write", "*/.config.json*"), "/config.json"),
    "tokenizer": ("plain", Fault("write", "*/tokenizer/*"), "/tokenizer/"),
    "sessions": ("plain", Fault("write", "*/.sessions.json*"), "/sessions.json"),
    "metrics": ("plain", Fault("write", "*/metrics.jsonl", after=12), "/metrics.jsonl"),
    "features": ("cached", Fault("write", "*/features/*.npy*"), "/features/"),
    "pixels": ("pixels", Fault("write", "*/pixels.npy"), "/pixels.npy"),
    "checkpoint arrays": ("plain", Fault("write", "*/checkpoints/last/*/d/*", after=20), "/checkpoints/last/"),
    "checkpoint folder": ("plain", Fault("mkdir", "*/checkpoints/last/10*"), "/checkpoints/last/10"),
    "checkpoint rename": ("plain", Fault("rename", "*/checkpoints/last/10", "EIO"), "/checkpoints/last/10"),
    "best weights": ("plain", Fault("write", "*/checkpoints/best/*"), "/run"),
    "model": ("plain", Fault("write", "*/model-10/.model.safetensors*"), "/model-10/model.safetensors"),
    "pointer": ("plain", Fault("fsync", "*/.best_model.json*", "EIO"), "/best_model.json"),
    "evaluation": ("plain", Fault("write", "*/.eval_val.json*"), "/eval_val.json"),
    "captions": ("plain", Fault("write", "*/.captions_val.json*", "EDQUOT"), "/captions_val.json"),
}


@pytest.mark.parametrize("kind", slow_or_long(ENDING, SLOW))
def test_a_run_ends_with_one_line_and_resumes_after_the_repair(launchers, undisturbed, fault_library, tmp_path, kind):
    name, fault, file = ENDING[kind]
    launcher, flags = launchers.get(name, launchers["plain"]), (*STEPS, *([PIXELS] if name == "pixels" else []))
    workdir, faults = tmp_path / "run", tmp_path / "faults.log"
    process = launcher.start(workdir, *flags, **fault_environment(fault_library, [fault], faults))
    assert process.wait(timeout=300) == 1, log_path(workdir).read_text()
    assert read_faults(faults)
    errors = read_errors(log_path(workdir).read_text())
    assert len(errors) == 1 and file in errors[0]
    assert not (workdir / "training.lock").exists() and not list(workdir.glob(".*.part"))
    launcher.complete(workdir, *flags)
    assert_same_result(workdir, undisturbed.get(name, undisturbed["plain"]))


OPTIONAL = {
    "event files": (Fault("write", "*/tensorboard/*"), "no more events are written for TensorBoard"),
    "event folder": (Fault("mkdir", "*/tensorboard"), "no more events are written for TensorBoard"),
    "report": (Fault("write", "*/.report_val.html*"), "the report is not written"),
    "loss curve": (Fault("write", "*/.loss_curve.png*"), "the loss curve is not drawn"),
    "compiled programs": (Fault("write", "*/programs/*"), "No space left on device"),
}


@pytest.mark.parametrize("kind", slow_or_long(OPTIONAL, SLOW))
def test_a_run_does_without_optional_output_and_says_so_once(launchers, undisturbed, fault_library, tmp_path, kind):
    fault, warning = OPTIONAL[kind]
    workdir, faults = tmp_path / "run", tmp_path / "faults.log"
    environment = fault_environment(fault_library, [fault], faults)
    if kind == "compiled programs":
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "programs")
    process = launchers["plain"].start(workdir, *STEPS, **environment)
    log = log_path(workdir).read_text if process.wait(timeout=300) == 0 else None
    assert log is not None, log_path(workdir).read_text()
    assert read_faults(faults) and not read_errors(log())
    if kind != "compiled programs":  # one warning per program
        assert log().count(warning) == 1
    assert_same_result(workdir, undisturbed["plain"])


@pytest.mark.long
def test_a_disk_that_becomes_full_at_any_moment_is_survived(launchers, undisturbed, small_disk):
    """A real disk with room for less and less of the run; the same command is then run with enough space."""
    launcher, ends = launchers["plain"], []
    for number, free_kilobytes in enumerate((900, 2000, 3500)):
        workdir = small_disk.folder / f"run{number}"
        small_disk.fill(free_bytes=free_kilobytes * 1024)
        log = small_disk.folder.parent / f"run{number}.log"
        ends.append(launcher.start(workdir, *STEPS, log=log).wait(timeout=300))
        assert len(read_errors(log.read_text())) == ends[-1], log.read_text()
        small_disk.free()
        resumed = launcher.start(workdir, *STEPS, log=log)
        assert resumed.wait(timeout=300) == 0, log.read_text()
        assert_same_result(workdir, undisturbed["plain"])
        shutil.rmtree(workdir)
    assert 1 in ends


@pytest.mark.slow
def test_a_deleted_workdir_ends_the_run_with_one_line(launchers, fault_library, tmp_path):
    workdir = tmp_path / "run"
    process = launchers["plain"].start(workdir, "--config.train.steps=100000", "--config.train.log_every=1")
    try:
        while not read_rows(workdir):
            assert process.poll() is None, log_path(workdir).read_text()
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.rmtree(workdir, ignore_errors=True)
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
    (error,) = read_errors(log_path(workdir).read_text())
    assert str(workdir) in error
