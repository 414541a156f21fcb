"""Every kind of input is read from a bucket of S3, which is emulated on loopback."""

from __future__ import annotations

import io
import tarfile

import pytest
import s3_emulator
from shards import BLUE, RED, encode, write_tar

from caption_jax.bulk.unit_images import open_images
from caption_jax.bulk.work_units import find_units
from input_pipeline.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.slow
URL = f"s3://{s3_emulator.BUCKET}/data"


@pytest.fixture
def emulator(monkeypatch):
    import fsspec

    with s3_emulator.emulate_s3() as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        yield emulator
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # it has the address of the emulator


def read_contents(*arguments: str) -> list[tuple[str, str, object]]:
    images = (image for unit in find_units(list(arguments), 10) for image in open_images(unit, DEFAULT_LIMITS))
    return [(image.source, image.key, image.image() if callable(image.image) else image.error) for image in images]


def test_shards_and_images_are_read_and_their_versions_are_noticed(emulator, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    tar = write_tar(tmp_path / "0.tar", {"a.png": encode(RED)})
    with tarfile.open(tmp_path / "1.tar.gz", "w:gz") as archive:
        archive.add(tar, "nested.tar")
        member = tarfile.TarInfo("b.png")
        member.size = len(encode(BLUE))
        archive.addfile(member, io.BytesIO(encode(BLUE)))
    paths = pa.table({"path": ["c.png", f"{URL}/c.png"]})
    parquet.write_table(paths, tmp_path / "2.parquet")
    for path in sorted(tmp_path.iterdir()):
        emulator.write(f"data/{path.name}", path.read_bytes())
    emulator.write("data/c.png", encode(RED))
    expected = [
        (f"{URL}/0.tar", "a.png", encode(RED)),
        (f"{URL}/1.tar.gz", "b.png", encode(BLUE)),
        (f"{URL}/2.parquet", "0", encode(RED)),
        (f"{URL}/2.parquet", "1", encode(RED)),
        (f"{URL}/c.png", "", encode(RED)),
    ]
    assert read_contents(URL) == expected
    assert read_contents(f"{URL}/*.tar*", f"{URL}/{{2,3}}.parquet")[:-1] == expected[:4]
    before = find_units([f"{URL}/0.tar"], 10)[0]
    emulator.write("data/0.tar", tar.read_bytes().replace(b"a.png", b"z.png"))
    after = find_units([f"{URL}/0.tar"], 10)[0]
    assert before.version != after.version and before.digest() == after.digest()
