"""`caption-many` and `index-many` with Ray: killed workers, killed and stopped drivers, and a cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from shards import BLUE, RED, encode, write_tar
from small_run import ROOT, run_main

pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.slow

SECONDS = 600


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


@contextlib.contextmanager
def started(*arguments: str | Path, address: str = "") -> Iterator[subprocess.Popen]:
    """Starts a command in its own process; kills it at the end of the block."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"RAY_ADDRESS": address} if address else {})
    command = [sys.executable, ROOT / "main.py", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_parts(folder: Path, count: int, process: subprocess.Popen) -> None:
    """Waits until a run has written some Parquet files."""
    end = time.monotonic() + SECONDS
    while len(list(folder.glob("part-*.parquet"))) < count:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)


def find_children(process: int, prefix: str = "") -> list[int]:
    """Returns the descendants of a process whose command line starts with a text."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(stat[1])
                names[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )

    def is_descendant(number: int) -> bool:
        while number in parents and number != process:
            number = parents[number]
        return number == process

    return [
        number for number in parents if number != process and names[number].startswith(prefix) and is_descendant(number)
    ]


def read_captions(folder: Path) -> dict[tuple[str, str], str | None]:
    """Returns the caption of each image; asserts that none occurs twice."""
    rows = parquet.read_table(folder).to_pylist()
    captions = {(row["source"], row["key"]): row["caption"] for row in rows}
    assert len(captions) == len(rows)
    return captions


def caption_alone(workdir: Path, shards: Path, folder: Path, capsys) -> dict[tuple[str, str], str | None]:
    """Returns the captions that `caption` gives to the images of tar files."""
    expected: dict[tuple[str, str], str | None] = {}
    for shard in sorted(shards.glob("*.tar")):
        target = folder / shard.stem
        subprocess.run(["tar", "--one-top-level=" + str(target), "-xf", shard], check=True)
        capsys.readouterr()
        run_main("--mode=caption", f"--workdir={workdir}", target, "--format=jsonl")
        for line in map(json.loads, capsys.readouterr().out.splitlines()):
            expected[str(shard), Path(line["path"]).name] = line.get("caption")
    return expected


def test_killed_workers_and_drivers_change_nothing(small_workdir, shards, tmp_path, capsys):
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
    assert read_captions(out) == caption_alone(small_workdir, shards, tmp_path, capsys)
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


@contextlib.contextmanager
def ray_cluster(nodes: Sequence[int]) -> Iterator[str]:
    """Starts a cluster on this machine.

    Args:
        nodes: number of CPU cores of each node.

    Yields:
        The address for RAY_ADDRESS.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": nodes[0], "object_store_memory": 2**27})
    try:
        for cpus in nodes[1:]:
            cluster.add_node(num_cpus=cpus, object_store_memory=2**27)
        yield cluster.address
    finally:
        cluster.shutdown()


def test_a_cluster_of_two_nodes(small_workdir, shards, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["caption-many", f"--workdir={small_workdir}", f"--out={out}", "--workers=2", shards]
    with ray_cluster([1, 1]) as address, started(*command, address=address) as driver:
        output, _ = driver.communicate(timeout=SECONDS)
        assert driver.returncode == 1 and "24 images in 6 Parquet files" in output, output
    assert read_captions(out) == caption_alone(small_workdir, shards, tmp_path, capsys)
