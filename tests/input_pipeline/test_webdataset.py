"""The `webdataset` source: samples in tar files, their captions, faults, and the stored index."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from synthetic_splits import make_png
from written_shards import TRAIN, make_members, make_shard_spec, write_shards, write_tar

from input_pipeline.errors import DataError
from input_pipeline.limits import Limits
from input_pipeline.records import Split
from input_pipeline.sources import open_splits, tar_index, webdataset
from input_pipeline.sources.shard_images import OpenShard
from input_pipeline.sources.tar_members import Member, read_members

IMAGE = make_png(7)


def open_members(folder: Path, members: list[tuple[str, bytes]], **changes) -> Split:
    """Opens a training shard with these members."""
    write_tar(folder / "a.tar", members)
    return open_splits(make_shard_spec(folder, "webdataset", **changes))["train"]


def open_damaged(folder: Path, members: list[tuple[str, bytes]], **changes) -> tuple[str, list[str]]:
    """Returns the report of the problems of a shard that also has a good sample, and the ids of its usable samples."""
    members = [("good.png", IMAGE), ("good.txt", b"text"), *members]
    with pytest.raises(DataError) as error:
        open_members(folder, members, **changes)
    return str(error.value), open_members(folder, members, on_error="skip", **changes).image_ids


def test_samples_are_the_members_with_one_key(tmp_path):
    members = [
        ("./x/1.PNG", IMAGE),
        ("./x/1.txt", b"\xef\xbb\xbf  two\nlines \n"),
        ("y/1.txt", b"of another folder"),
        ("y/1.jpg", IMAGE),  # not next to its text
        ("x/2.png", IMAGE),
        ("x/2.json", b'{"captions": ["a", " b "], "text": "c"}'),
        ("x/._2.png", b"of macOS"),
        ("x/2.cls", b"3"),
    ]
    split = open_members(tmp_path, members)
    assert split.references == {"x/1": ["two\nlines"], "y/1": ["of another folder"], "x/2": ["a", "b"]}
    assert {record.source() for record in split} == {IMAGE}


def test_columns_name_the_image_the_caption_and_the_id(tmp_path):
    members = [
        ("1.jpg", b"the original"),
        ("1.mask.png", IMAGE),
        ("1.txt", b"not this"),
        ("1.json", b'{"legend": "this", "number": 17, "caption": "nor this"}'),
    ]
    columns = {"image_column": "mask.png", "caption_column": "legend", "id_column": "number"}
    (record,) = open_members(tmp_path, members, **columns)
    assert (record.source(), record.captions, record.image_id) == (IMAGE, ("this",), 17)


def test_ignored_images_are_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    members = [("1.jpg", b"first"), ("1.png", b"second"), ("1.txt", b"text"), ("1.v2.png", IMAGE)]
    (record,) = open_members(tmp_path, members)
    assert record.source() == b"first"
    assert "1 samples have several images" in caplog.text
    assert "1 images are not used, because their keys end at the first dot of their names: 1.v2.png" in caplog.text


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("1.png", IMAGE)], "images without captions: 1\n    a.tar: 1.png"),
        ([("1.png", IMAGE), ("1.txt", b" \n")], "images without captions: 1\n    a.tar: 1.png"),
        ([("1.txt", b"text")], "samples without an image: 1\n    a.tar: 1"),
        ([("1.png", IMAGE), ("1.txt", b"caf\xe9")], "1.txt is not UTF-8 (byte 3)"),
        ([("1.png", IMAGE), ("1.json", b"{")], "1.json is not valid JSON: "),
        ([("1.png", IMAGE), ("1.json", b"[]")], "1.json must hold a JSON object, not [] (a list)"),
        ([("1.png", IMAGE), ("1.json", b'{"a": 1, "b": 2}')], "no field known to hold captions"),
        ([("1.png", IMAGE), ("1.json", b'{"caption": [3]}')], "'caption' is [3] (a list); wanted a caption or a list"),
        ([("1.png", IMAGE), ("1.txt", b"x" * 10_001)], "a caption of 10,001 characters, more than the limit"),
        ([("1.png", IMAGE), ("1.txt", b"a\0b")], "the caption contains a null character"),
        ([("\udce9.png", IMAGE), ("\udce9.txt", b"text")], "names that are not UTF-8: 1\n    a.tar: '\\udce9'"),
    ],
)
def test_samples_that_cannot_be_used_are_named_counted_and_skipped(members, problem, tmp_path):
    message, ids = open_damaged(tmp_path, members)
    assert problem in message and ids == ["good"]


def test_duplicate_members_keep_the_first(tmp_path):
    message, ids = open_damaged(tmp_path, [("good.png", b"second")])
    assert "duplicate members: 1\n    a.tar: good.png at byte" in message and ids == ["good"]


def test_names_that_leave_the_folder_are_only_names(tmp_path):
    (record,) = open_members(tmp_path, [("../../etc/x.png", IMAGE), ("../../etc/x.txt", b"text")])
    assert record.image_id == "../../etc/x" and record.source() == IMAGE


def test_ids_in_json_must_exist(tmp_path):
    message, ids = open_damaged(tmp_path, [("1.png", IMAGE), ("1.json", b'{"caption": "a", "n": 4}')], id_column="n")
    assert "the id 'n' (config.data.id_column) is missing" in message and ids == [4]


def test_large_images_are_not_read(tmp_path):
    write_tar(tmp_path / "a.tar", [*make_members({"001": ("a",)}), ("2.png", bytes(2000)), ("2.txt", b"b")])
    spec = make_shard_spec(tmp_path, "webdataset")
    with pytest.raises(DataError, match=r"images above config\.limits\.image_file_bytes: 1\n.*2\.png \(2,000 bytes\)"):
        open_splits(spec, Limits(image_file_bytes=1000))


def write_three(path: Path) -> tuple[bytes, list[int]]:
    """Writes three samples. Returns the content of the file and the positions of its headers."""
    write_tar(path, make_members({key: TRAIN[key] for key in [*TRAIN][:3]}))
    with tarfile.open(path) as file:
        return path.read_bytes(), [member.offset for member in file]


@pytest.mark.parametrize(
    ("damage", "problem", "ids"),
    [
        (lambda data, starts: data[: starts[4] + 560], "truncated members: 1\n", ["000", "001"]),
        (lambda data, starts: data[: starts[4]], "shards without an end: 1\n", ["000", "001"]),
        (lambda data, starts: data[: starts[4] + 100], "members with a damaged header: 1\n", ["000", "001"]),
        (
            lambda data, starts: data[: starts[2]] + b"x" * 512 + data[starts[2] + 512 :],
            "members with a damaged header: 1\n",
            ["000", "002"],
        ),
        (lambda data, starts: b"x" * 512 + data[512:], "members with a damaged header: 1\n", ["001", "002"]),
    ],
)
def test_the_other_samples_of_a_damaged_shard_are_used(damage, problem, ids, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(damage(*write_three(path)))
    with pytest.raises(DataError) as error:
        open_splits(make_shard_spec(tmp_path, "webdataset"))
    assert problem + "    a.tar: " in str(error.value)
    train = open_splits(make_shard_spec(tmp_path, "webdataset", on_error="skip"))["train"]
    assert train.image_ids == ids
    assert [record.source() for record in train] == [make_png(int(key)) for key in ids]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty shards: 1"),
        (b"no tar file" * 100, "files that are not tar files: 1"),
        (b"\x1f\x8b" + bytes(1000), "compressed shards: 1"),
    ],
)
def test_files_that_are_not_tar_files_are_reported(content, problem, tmp_path):
    (tmp_path / "b.tar").write_bytes(content)
    write_three(tmp_path / "a.tar")
    with pytest.raises(DataError) as error:
        open_splits(make_shard_spec(tmp_path, "webdataset"))
    assert problem in str(error.value)
    assert len(open_splits(make_shard_spec(tmp_path, "webdataset", on_error="skip"))["train"]) == 3


def test_a_pipe_is_reported(tmp_path):
    write_three(tmp_path / "a.tar")
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"unreadable shards: 1\n.*b\.tar is a named pipe"):
        open_splits(make_shard_spec(tmp_path, "webdataset"))


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tar_format, tmp_path):
    names = ["a.png", "d" * 90 + "/" + "n" * 90 + ".png", "é.png"] + ["x" * 300 + ".png"] * (tar_format > 0)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as file:
        file.add(tmp_path, "folder", recursive=False)
        for name in names:
            (tmp_path / "content").write_bytes(name.encode() * 9)
            file.add(tmp_path / "content", name)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        file.addfile(link)
    path.write_bytes(path.read_bytes() * 2)  # two archives in one file
    problems = []
    shard = OpenShard(str(path))
    members = list(read_members(shard.fileno(), lambda *problem: problems.append(problem)))
    with tarfile.open(path, ignore_zeros=True) as file:
        assert members == [Member(item.name, item.offset_data, item.size) for item in file if item.isreg()]
    assert len(members) == 2 * len(names)
    assert [kind for kind, _ in problems] == ["members that are not regular files"] * 2


def test_the_index_is_stored_and_used_until_the_shard_or_the_settings_change(tmp_path, monkeypatch):
    spec = write_shards(tmp_path, "webdataset")
    expected = {name: split.references for name, split in open_splits(spec).items()}
    assert {path.name for path in (tmp_path / "caption_index").iterdir()} == {
        f"{name}.tar.json" for name in ("train-0000", "train-0001", "val-0000")
    }
    read = []
    monkeypatch.setattr(
        webdataset, "read_members", lambda file, on_problem: read.append(file) or read_members(file, on_problem)
    )
    assert {name: split.references for name, split in open_splits(spec).items()} == expected and not read
    write_tar(tmp_path / "val-0000.tar", make_members({"050": ("changed",)}))
    assert open_splits(spec)["val"].references == {"050": ["changed"]} and len(read) == 1
    open_splits(make_shard_spec(tmp_path, "webdataset", id_column="__url__"))
    assert len(read) == 4


def test_a_stored_index_reports_the_same_problems(tmp_path):
    write_tar(tmp_path / "a.tar", [*make_members({"001": ("text",)}), ("2.png", IMAGE)])
    messages = []
    for _ in range(2):
        with pytest.raises(DataError) as error:
            open_splits(make_shard_spec(tmp_path, "webdataset"))
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "a.tar: 2.png" in messages[0]


def test_a_damaged_index_is_replaced(tmp_path):
    spec = write_shards(tmp_path, "webdataset")
    expected = open_splits(spec)["train"].references
    stored = tmp_path / "caption_index" / "train-0000.tar.json"
    content = json.loads(stored.read_text())
    for damaged in (b"{", b"\xff", json.dumps({**content, "samples": None}).encode(), b"[]"):
        stored.write_bytes(damaged)
        assert open_splits(spec)["train"].references == expected
        assert json.loads(stored.read_text()) == content


def test_folders_that_cannot_be_written_are_read(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    caplog.set_level("INFO")
    monkeypatch.setattr(tar_index, "write_atomically", fail)
    assert len(open_splits(write_shards(tmp_path, "webdataset"))["train"]) == len(TRAIN)
    assert caplog.text.count("cannot be written (Permission denied); the shards are indexed at every start") == 1
