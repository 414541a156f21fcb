"""2,000 photographs in 40 tar files are captioned by two workers, whatever is killed, and by a cluster of two nodes.

python -m pytest -n 0 -s -m long tests/long/test_bulk.py
"""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from bulk_commands import caption_alone, find_children, ray_cluster, read_captions, started, wait_for_parts
from PIL import Image
from shards import write_tar

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.long

SHARDS, IMAGES, WIDTH = 40, 50, 640
HOUR = 3600


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory) -> Path:
    """A folder of tar files with photographs that are 640 pixels wide, each shifted by another number of pixels."""
    folder = tmp_path_factory.mktemp("photographs")
    files = sorted((shared_data / "coco_mini" / "images").glob("*.jpg"))
    originals = []
    for file in files:
        image = Image.open(file).convert("RGB")
        originals.append(image.resize((WIDTH, round(image.height * WIDTH / image.width))))
    for shard in range(SHARDS):
        images = {}
        for position in range(IMAGES):
            number = shard * IMAGES + position
            image = originals[number % len(originals)]
            buffer = io.BytesIO()
            shift = 4 * (number // len(originals))
            image.transform(image.size, Image.Transform.AFFINE, (1, 0, shift, 0, 1, shift)).save(buffer, "JPEG")
            images[f"{number:04d}.jpg"] = buffer.getvalue()
        write_tar(folder / f"{shard:02d}.tar", images)
    return folder


@pytest.fixture(scope="module")
def expected(photographs, tmp_path_factory) -> dict[tuple[str, str], str | None]:
    """The captions that `caption` gives."""
    return caption_alone("demo", photographs, tmp_path_factory.mktemp("single"))


def test_killed_workers_and_a_killed_driver_change_nothing(photographs, expected, tmp_path):
    out = tmp_path / "out"
    command = ["caption-many", "--workdir=demo", f"--out={out}", "--workers=2", photographs]
    with started(*command) as driver:
        for count in (3, 8):
            wait_for_parts(out, count, driver)
            os.kill(find_children(driver.pid, "ray::Map")[0], signal.SIGKILL)
        wait_for_parts(out, 14, driver)
        driver.kill()
        driver.wait()
    with started(*command) as driver:
        output, _ = driver.communicate(timeout=HOUR)
        assert driver.returncode == 0, output
    print(output.splitlines()[-1])
    assert len(expected) == SHARDS * IMAGES and read_captions(out) == expected


def test_a_cluster_of_two_nodes(photographs, expected, tmp_path):
    command = ["caption-many", "--workdir=demo", f"--out={tmp_path / 'out'}", "--workers=2", photographs]
    with ray_cluster([1, 1]) as cluster, started(*command, address=cluster.address) as driver:
        output, _ = driver.communicate(timeout=HOUR)
        assert driver.returncode == 0, output
    assert read_captions(tmp_path / "out") == expected
