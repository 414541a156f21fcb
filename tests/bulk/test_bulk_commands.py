"""`caption-many` and `index-many` with Ray: killed workers, killed and stopped drivers, and a cluster."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from bulk_commands import SECONDS, caption_alone, find_children, ray_cluster, read_captions, started, wait_for_parts
from shards import BLUE, RED, encode, write_tar
from small_run import run_main

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

SHARDS, IMAGES = 30, 200  # that take longer than killing a process


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder with six tar files of four images, one of which is broken."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(6):
        images = {f"{image}.png": encode((RED, BLUE)[(number + image) % 2]) for image in range(3)}
        last = b"\x89PNG\r\n\x1a\n" if number == 5 else encode(RED)
        write_tar(folder / f"{number}.tar", images | {"last.png": last})
    return folder


def test_killed_workers_and_drivers_change_nothing(small_workdir, shards, tmp_path):
    out = tmp_path / "out"
    command = ["caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=2", shards]
    with started(*command) as driver:
        wait_for_parts(out, 1, driver)
        workers = find_children(driver.pid, "ray::Map")
        if workers:  # none is left if all files have been written meanwhile
            os.kill(workers[0], signal.SIGKILL)
        wait_for_parts(out, 2, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    with started(*command) as driver:
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 1, output
    assert "24 images in 6 Parquet files" in output and "5.tar/last.png: " in output
    assert read_captions(out) == caption_alone(small_workdir, shards, tmp_path / "alone")
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in finished.items())
    assert json.loads((out / "_summary.json").read_text()) == {"images": 24, "errors": 1, "parts": 6}


def test_a_stopped_run_leaves_no_processes_and_says_how_to_go_on(small_workdir, shards, tmp_path):
    out = tmp_path / "out"
    with started("caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=1", shards) as driver:
        wait_for_parts(out, 1, driver)
        children = find_children(driver.pid)
        driver.send_signal(signal.SIGTERM)
        output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode in (75, 143), output  # 143 if Ray does not end in time
    assert "interrupted (SIGTERM); the same command resumes the run" in output or driver.returncode == 143
    end = time.monotonic() + 60
    while alive := [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)


def test_an_index_of_shards_is_searched(searchable_workdir, shards, tmp_path, capsys):
    out, index = tmp_path / "out", tmp_path / "index"
    flags = [f"--workdir={searchable_workdir}", f"--index={index}"]
    with started("index-many", *flags, f"--out={out}", "--captions=none", "--images_per_batch=4", shards) as driver:
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 1 and "23 images (23 added" in output, output
    assert run_main("search", *flags, "a blue box on the right.", "--top=9", "--format=jsonl") == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    blue = {f"{shards}/{number}.tar/{image}.png" for number in range(6) for image in range(3) if (number + image) % 2}
    assert {result["id"] for result in results} == blue
    assert run_main("index", flags[0], f"--index={tmp_path / 'again'}", out) == 0
    assert "23 images (23 added" in capsys.readouterr().out


def test_a_cluster_of_two_nodes(small_workdir, shards, tmp_path):
    out = tmp_path / "out"
    command = ["caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=2", shards]
    with ray_cluster([1, 1]) as cluster, started(*command, address=cluster.address) as driver:
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 1 and "24 images in 6 Parquet files" in output, output
    assert read_captions(out) == caption_alone(small_workdir, shards, tmp_path / "alone")


def write_red_shards(folder: Path) -> Path:
    """Writes tar files of equal images, and returns their folder."""
    folder.mkdir()
    for number in range(SHARDS):
        write_tar(folder / f"{number:02d}.tar", {f"{image:03d}.png": encode(RED) for image in range(IMAGES)})
    return folder


def test_a_run_goes_on_without_a_lost_machine(small_workdir, tmp_path):
    folder, out = write_red_shards(tmp_path / "shards"), tmp_path / "out"
    command = ["caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=2", folder]
    with ray_cluster([1, 1]) as cluster, started(*command, address=cluster.address) as driver:
        wait_for_parts(out, 2, driver)
        cluster.list_all_nodes()[1].kill_raylet()
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0, output
    assert "has ended or cannot be reached: starting again with those that are left" in output
    assert "(raylet)" not in output, output
    assert f"{SHARDS * IMAGES:,} images in {SHARDS} Parquet files" in output
    assert len(read_captions(out)) == SHARDS * IMAGES


def test_a_run_on_one_machine_goes_on_if_ray_ends(small_workdir, tmp_path):
    folder, out = write_red_shards(tmp_path / "shards"), tmp_path / "out"
    command = ["caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=1", folder]
    with started(*command) as driver:
        wait_for_parts(out, 2, driver)
        (raylet,) = [child for child in find_children(driver.pid) if is_raylet(child)]
        os.kill(raylet, signal.SIGKILL)
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 0, output
    assert len(read_captions(out)) == SHARDS * IMAGES


def is_raylet(process: int) -> bool:
    return Path(f"/proc/{process}/cmdline").read_bytes().partition(b"\0")[0].endswith(b"/raylet")
