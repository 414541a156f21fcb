"""Inputs are divided into units, always in the same way."""

from __future__ import annotations

import os

import pytest
from shards import encode, write_tar

from caption_jax.bulk.work_units import IMAGES, Unit, find_kind, find_units
from caption_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encode())
    for name in ("1.tar", "0.tar", "deep/2.tar"):
        write_tar(tmp_path / name, {"a.png": encode()})
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_stands_for_its_shards_and_for_groups_of_its_images(folder):
    units = find_units([str(folder)], images_per_part=2)
    assert [(unit.kind, len(unit.paths)) for unit in units] == [("tar", 1)] * 3 + [
        (IMAGES, 2),
        (IMAGES, 2),
        (IMAGES, 1),
    ]
    assert [unit.name for unit in units[:3]] == [str(folder / name) for name in ("0.tar", "1.tar", "deep/2.tar")]
    assert units[0].size == (folder / "0.tar").stat().st_size
    assert [path for unit in units[3:] for path in unit.paths] == [str(folder / f"{n}.png") for n in range(5)]
    assert find_units([str(folder)], 2) == units


def test_patterns_braces_and_repeated_names_give_each_file_once(folder):
    arguments = [f"{folder}/{{0..1}}.tar", f"{folder}/*.tar", f"{folder}/0.png", f"{folder}/missing.png"]
    units = find_units(arguments, 10)
    assert [unit.name for unit in units] == [str(folder / name) for name in ("0.tar", "1.tar", "0.png")]
    assert units[-1].paths[1] == str(folder / "missing.png")  # reported as an error of its row
    with pytest.raises(ConfigError, match=r"each \{ needs a }"):
        find_units([f"{folder}/{{0..1.tar"], 10)


def test_relative_paths_become_absolute_because_workers_have_other_folders(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_units(["0.tar"], 10)[0].paths == (str(folder / "0.tar"),)


def test_a_changed_shard_has_another_digest(folder):
    before = find_units([f"{folder}/0.tar"], 10)[0]
    write_tar(folder / "0.tar", {"a.png": encode(), "b.png": encode() * 200})
    assert find_units([f"{folder}/0.tar"], 10)[0].digest() != before.digest()
    assert Unit(IMAGES, ("a", "b")).digest() != Unit(IMAGES, ("a", "c")).digest()


def test_a_shard_that_was_written_again_has_another_version(folder):
    path = folder / "0.tar"
    before = find_units([str(path)], 10)[0]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = find_units([str(path)], 10)[0]
    assert after.digest() == before.digest() and after.version == str(int(before.version) + 1)


def test_cached_results_of_the_datasets_library_are_not_shards_of_a_folder(tmp_path, bucket):
    bucket.mkdir(parents=True)
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        for folder in (tmp_path, bucket):
            (folder / name).write_bytes(b"x")
    for folder in (str(tmp_path), "gs://bucket"):
        (unit,) = find_units([folder], 10)
        assert unit.name == f"{folder}/data-00000-of-00001.arrow"
        assert len(find_units([f"{folder}/*.arrow"], 10)) == 2  # a pattern means what it says


def test_objects_of_a_bucket_by_prefix_pattern_and_name(bucket):
    (bucket / "data").mkdir(parents=True)
    for name in ("data/1.tar", "data/0.tar", "data/a.png", "data/notes.txt"):
        (bucket / name).write_bytes(b"12345")
    tars = [("tar", ("gs://bucket/data/0.tar",), 5), ("tar", ("gs://bucket/data/1.tar",), 5)]
    images = [(IMAGES, ("gs://bucket/data/a.png",), 0)]
    for argument, expected in (
        ("data", tars + images),
        ("data/*.tar", tars),
        ("data/{0..1}.tar", tars),
        ("data/a.png", images),
    ):
        units = find_units([f"gs://bucket/{argument}"], 10)
        assert [(unit.kind, unit.paths, unit.size) for unit in units] == expected
        assert all(bool(unit.version) == bool(unit.size) for unit in units)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("a.tgz", "tar"),
        ("a.tar.bz2", "tar"),
        ("a.tar.xz", "tar"),
        ("a.parquet", "parquet"),
        ("data-00000-of-00001.arrow", "arrow"),
        ("x-train.array_record-00000-of-00004", "array_record"),
        ("x.arrayrecord", "array_record"),
        ("tar.jpg", IMAGES),
    ],
)
def test_kinds(name, kind):
    assert find_kind(name) == kind
