"""Commands of bulk captioning in their own processes, and what they write, for tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from small_run import ROOT, run_main

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SECONDS = 600


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
    import pyarrow.parquet as pq

    rows = pq.read_table(folder).to_pylist()
    captions = {(row["source"], row["key"]): row["caption"] for row in rows}
    assert len(captions) == len(rows)
    return captions


def caption_alone(workdir: Path | str, shards: Path, folder: Path) -> dict[tuple[str, str], str | None]:
    """Returns the captions that `caption` gives to the images of tar files, which are extracted to `folder`."""
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as archive:
            archive.extractall(folder / shard.stem, filter="data")
    names = [folder / shard.stem for shard in sorted(shards.glob("*.tar"))]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        run_main("--mode=caption", f"--workdir={workdir}", "--format=jsonl", *names)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    paths = [Path(line["path"]) for line in lines]
    keys = [(str(shards / f"{path.parent.name}.tar"), path.name) for path in paths]
    return {key: line.get("caption") for key, line in zip(keys, lines, strict=True)}


@contextlib.contextmanager
def ray_cluster(nodes: Sequence[int]) -> Iterator[Cluster]:
    """Starts a cluster on this machine, whose `address` is that for RAY_ADDRESS.

    Args:
        nodes: number of CPU cores of each node.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": nodes[0], "object_store_memory": 2**27})
    try:
        for cpus in nodes[1:]:
            cluster.add_node(num_cpus=cpus, object_store_memory=2**27)
        yield cluster
    finally:
        cluster.shutdown()
