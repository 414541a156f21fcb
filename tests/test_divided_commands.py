"""Commands with two processes have the output of one process; the second process is silent."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from process_group import reserve_address
from quick_compilation import QUICK_COMPILATION_FLAGS
from resume_run import ROOT
from tiers import slow_or_long

COPIES = 6  # of twelve images: more than one chunk of an index


@dataclasses.dataclass(frozen=True)
class Output:
    """What a process of a command has printed, and its exit status."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ") or "see the errors" in line]


def run_command(*arguments: str, processes: int = 1) -> list[Output]:
    """Runs a command in several processes; returns what each of them has printed."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_COMPILATION_FLAGS}
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": reserve_address(), "JAX_NUM_PROCESSES": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "main.py", *arguments],
            cwd=ROOT,
            env=environment | ({"JAX_PROCESS_ID": str(index)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        Output(process.returncode, stdout, stderr.decode())
        for process, (stdout, stderr) in zip(started, outputs, strict=True)
    ]


def check_same_output(*arguments: str, status: int = 0) -> bytes:
    """Asserts that a command prints the same in one and in two processes; returns its output."""
    (expected,) = run_command(*arguments)
    assert expected.status == status, expected.stderr
    first, second = run_command(*arguments, processes=2)
    assert (first.status, second.status) == (status, status), first.stderr + second.stderr
    assert first.stdout == expected.stdout
    assert first.errors == expected.errors
    assert (second.stdout, second.errors) == (b"", [])
    return expected.stdout


@pytest.fixture(scope="module")
def photographs(distinct_images, tmp_path_factory) -> Path:
    """A folder of images, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("photographs")
    originals = sorted(path for path in distinct_images.rglob("*") if path.suffix in (".png", ".jpg"))
    for copy in range(COPIES):
        for path in originals:
            shutil.copy(path, folder / f"{copy}_{path.name}")
    for name in ("0_damaged.png", "4_damaged.jpg"):
        (folder / name).write_bytes(b"not an image")
    return folder


@pytest.mark.parametrize("output_format", slow_or_long(["text", "jsonl"], slow=["jsonl"]))
def test_captions(searchable_workdir, photographs, output_format):
    arguments = ["caption", f"--workdir={searchable_workdir}", f"--format={output_format}"]
    output = check_same_output(*arguments, str(photographs), str(photographs / "missing.png"), status=1)
    assert len(output.splitlines()) == 12 * COPIES + 3 * (output_format == "jsonl")


@pytest.mark.slow
def test_arguments_without_any_image(searchable_workdir, tmp_path):
    check_same_output("caption", f"--workdir={searchable_workdir}", str(tmp_path), status=2)


@pytest.mark.slow
def test_an_index_its_neighbours_and_a_search(searchable_workdir, distinct_images, photographs, tmp_path):
    contents = {}
    workdir = f"--workdir={searchable_workdir}"
    for processes in (1, 2):
        index = tmp_path / "index"  # the same path, which is printed
        built = run_command("index", workdir, f"--index={index}", str(photographs), processes=processes)
        again = run_command("index", workdir, f"--index={index}", str(photographs), processes=processes)
        near = run_command("neighbours", workdir, f"--index={index}", "--split=train", processes=processes)
        found = run_command("search", workdir, f"--index={index}", "a red box", processes=processes)
        outputs = [built, again, near, found]
        assert [output.status for command in outputs for output in command] == [
            status for status in (1, 1, 0, 0) for _ in range(processes)
        ], outputs
        assert all(output.stdout == b"" and not output.errors for command in outputs for output in command[1:])
        printed = [(command[0].stdout, command[0].errors) for command in outputs]
        files = {path.name: path.read_bytes() for path in index.iterdir() if path.is_file()}
        contents[processes] = (printed, files)
        shutil.rmtree(index)
    assert contents[1] == contents[2]
    assert any(name.startswith("vectors") for name in contents[1][1])


@pytest.mark.parametrize("command", slow_or_long(["evaluate", "tune"], slow=["tune"]))
def test_scores_of_a_split(searchable_workdir, tmp_path, command):
    results = {}
    flags = ["--config.mesh.data=-1", "--config.decode.num_beams=2", "--config.decode.method=beam", "--split=val"]
    for processes in (1, 2):
        workdir = Path(shutil.copytree(searchable_workdir, tmp_path / f"run_{processes}"))
        outputs = run_command(command, f"--workdir={workdir}", *flags, processes=processes)
        assert [output.status for output in outputs] == [0] * processes, outputs[0].stderr
        for output in outputs[1:]:  # the library of the collective operations on CPUs prints a line of its own
            assert [line for line in output.stdout.splitlines() if not line.startswith(b"[Gloo]")] == []
        prefix = {"evaluate": "eval", "tune": "tune"}[command]
        scores = json.loads((workdir / f"{prefix}_val.json").read_text())
        scores.pop("protocol")
        captions = {path.name: path.read_text() for path in sorted(workdir.glob("captions_val*.json"))}
        assert captions
        results[processes] = (flatten_numbers(scores), captions)
    (expected, expected_captions), (actual, captions) = results[1], results[2]
    assert captions == expected_captions
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), atol=1e-5)


def flatten_numbers(tree: object, path: str = "") -> dict[str, float]:
    """Returns the numbers in nested dictionaries and lists, by path."""
    if isinstance(tree, dict):
        return {k: v for name, item in tree.items() for k, v in flatten_numbers(item, f"{path}/{name}").items()}
    if isinstance(tree, list):
        return {k: v for n, item in enumerate(tree) for k, v in flatten_numbers(item, f"{path}/{n}").items()}
    return {path: float(tree)} if isinstance(tree, int | float) else {}
