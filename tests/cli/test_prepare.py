"""`prepare` writes a dataset on which a run has the losses of a run on the original, and continues after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_run import ROOT, run_main, train_two_steps, write_images

pytest.importorskip("array_record", reason="array_record reads and writes shards")

CONFIG = ROOT / "tests" / "small_run.py"


def list_flags(images: Path, folder: Path, *flags: str) -> list[str]:
    return ["prepare", f"--config={CONFIG}", f"--config.data.root={images}", f"--out={folder}", *flags]


def test_the_command_prints_what_it_wrote_and_leaves_a_complete_folder_as_it_is(small_images, tmp_path, capsys):
    command = list_flags(small_images, tmp_path / "prepared")
    for state in ("", " is prepared already"):
        assert run_main(*command) == 0
        output = capsys.readouterr().out
        counts = r"8 train, 2 val, 2 test images of 32 x 32 pixels \(raw\), .* in 3 shards"
        assert re.search(rf"^{tmp_path}/prepared{state}: {counts}$", output, flags=re.MULTILINE)
        assert f"--config.data.source=prepared --config.data.root={tmp_path}/prepared\n" in output
    assert sorted(os.listdir(tmp_path)) == ["prepared"]  # there is no workdir


def test_skipped_images_are_counted(small_images, tmp_path, capsys):
    write_images(tmp_path / "images")
    (tmp_path / "images" / "images" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    command = list_flags(tmp_path / "images", tmp_path / "prepared", "--image_format=jpeg", "--jpeg_quality=80")
    assert run_main(*command, reports_errors=True) == 1
    error = capsys.readouterr().err
    assert "03.png: " in error and "skip such images with --config.data.on_error=skip" in error
    assert run_main(*command, "--config.data.on_error=skip") == 0
    output = capsys.readouterr().out
    assert ": 7 train, 2 val, 2 test images of 32 x 32 pixels (jpeg), " in output
    assert "\n1 images could not be read; card.json lists them\n" in output


def test_parts_of_a_mixture_are_prepared_one_by_one(tmp_path, capsys):
    config = ROOT / "tests" / "resume_run.py"
    assert run_main("prepare", f"--config={config}:mixture", f"--out={tmp_path}/prepared", reports_errors=True) == 1
    assert 'config.data.source is "mixture": prepare each part with a config of its own' in capsys.readouterr().err
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_run_on_prepared_images_has_the_losses_of_a_run_on_the_folder(small_images, tmp_path):
    assert run_main(*list_flags(small_images, tmp_path / "prepared")) == 0
    expected = train_two_steps(tmp_path / "folder", root=str(small_images))
    assert len(expected) == 3
    assert train_two_steps(tmp_path / "run", source="prepared", root=str(tmp_path / "prepared")) == expected


def write_large_folder(folder: Path, images: int) -> Path:
    """Writes a folder with one image many times."""
    write_images(folder)
    (original,) = (folder / "images").glob("00.png")
    lines = ["image,caption,split\n"]
    for number in range(images):
        (folder / "images" / f"{number:03d}.png").hardlink_to(original)
        lines.append(f"{number:03d}.png,caption {number},train\n")
    (folder / "captions.csv").write_text("".join(lines))
    return folder


@pytest.mark.slow
def test_a_killed_command_leaves_no_processes_and_continues(tmp_path):
    images, folder = write_large_folder(tmp_path / "images", 250), tmp_path / "prepared"
    flags = list_flags(images, folder, "--config.data.image_size=1024", "--config.data.workers=2")

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, str(ROOT / "main.py"), *flags], cwd=tmp_path, start_new_session=True)

    process = start()
    while not list(folder.glob("train-*-of-00004.json")):
        assert process.poll() is None
        time.sleep(0.02)
    workers = find_children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < deadline, workers
        time.sleep(0.1)
    complete = {path: path.stat().st_mtime_ns for path in folder.glob("train-*.json")}
    assert not (folder / "card.json").exists() and len(complete) < 4
    assert start().wait() == 0
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    assert not list(folder.glob(".*"))
    assert json.loads((folder / "card.json").read_text())["splits"]["train"]["images"] == 250


def find_children(process: int) -> list[int]:
    """Returns the processes that a process has started."""
    path = Path(f"/proc/{process}/task/{process}/children")
    if not path.exists():
        pytest.skip("needs /proc/PID/task/PID/children, which this kernel does not have")
    return [int(child) for child in path.read_text().split()]
