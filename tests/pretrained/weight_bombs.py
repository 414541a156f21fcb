"""Weight files that declare far more data than they contain, or whose contents need much time or memory to read."""

from __future__ import annotations

import copy
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

EMPTY_STATE = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)


def number(value: int) -> bytes:
    """Returns the opcode of an integer of any size."""
    content = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def storage_of(count: int) -> bytes:
    """Returns the opcodes of a storage of `count` float32 values."""
    return b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(count) + b"tQ"


def write_zip(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", members.get("storage", bytes(16)))


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """Returns the opcodes of a tensor."""

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(value) for value in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage_of(count)
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"I00\nccollections\nOrderedDict\n)RtR"
    )


def state(value: bytes) -> bytes:
    """Returns the pickle of a state dict with one value."""
    return b"\x80\x02}X\x06\x00\x00\x00weight" + value + b"s."


def pickle_of(content: bytes) -> Callable[[Path], None]:
    return lambda path: write_zip(path, content)


def compressed_pickle(path: Path) -> None:
    write_zip(path, b"\x80\x02" + bytes(300_000_000), zipfile.ZIP_DEFLATED)


def compressed_storage(path: Path) -> None:
    content = state(tensor((75_000_000,), (1,), count=75_000_000))
    write_zip(path, content, zipfile.ZIP_DEFLATED, storage=bytes(300_000_000))


def overlapping_members(path: Path) -> None:
    """A thousand members in the same bytes of the file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state(b"N"))
        archive.writestr("archive/data/0", bytes(1_000_000))
        for index in range(1, 1000):
            info = copy.copy(archive.filelist[-1])
            info.filename = f"archive/data/{index}"
            archive.filelist.append(info)


def many_members(path: Path) -> None:
    """The end of the archive declares a directory of a gigabyte; the file is sparse."""
    write_zip(path, state(b"N"))
    content = path.read_bytes()
    end = content.rfind(b"PK\5\6")
    with path.open("wb") as file:
        file.truncate(2**30)
        file.seek(2**30)
        file.write(content[end : end + 12] + struct.pack("<I", 2**30) + content[end + 16 :])


def sparse_file(path: Path) -> None:
    """Three gigabytes of zeros, which need no disk space."""
    with path.open("wb") as file:
        file.truncate(3 * 2**30)


def legacy(content: bytes, keys: bytes = pickle.dumps(["0"], 2), rest: bytes = b"") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(EMPTY_STATE + content + keys + rest)


def safetensors(header: bytes, declared: int | None = None, rest: bytes = bytes(16)) -> Callable[[Path], None]:
    length = len(header) if declared is None else declared
    return lambda path: path.write_bytes(struct.pack("<Q", length) + header + rest)


def declare(shape: list[int], end: int = 16) -> bytes:
    return json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def sparse_safetensors(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(3 * 2**30)


def hdf5(**options) -> Callable[[Path], None]:
    import h5py

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("normalization/normalization/mean:0", dtype="f4", **options)

    return write


def hdf5_of_another_file(path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        external = [("/etc/hostname", 0, 4)]
        file.create_dataset("normalization/normalization/mean:0", (1,), "f4", external=external)


def keras_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(300_000_000))


DOUBLED_TUPLE = b"N" + b"2\x86" * 60  # the hash of 60 nested pairs of the same object needs 2^60 steps
SHARED_ITEMS = b"](" + b"".join(b"](X\x04\x00\x00\x00%04dNe" % index for index in range(1000)) + b"eq\x010"
BOMBS: dict[str, Callable[[Path], None]] = {
    "compressed_pickle.pth": compressed_pickle,
    "compressed_storage.pth": compressed_storage,
    "overlapping_members.pth": overlapping_members,
    "many_members.pth": many_members,
    "sparse_file.pth": sparse_file,
    "repeated_storage.pth": pickle_of(state(tensor((30_000, 30_000_000), (0, 0)))),
    "negative_stride.pth": pickle_of(state(tensor((2, 2), (-1, 1)))),
    "negative_offset.pth": pickle_of(state(tensor((2, 2), (1, 1), -1))),
    "huge_shape.pth": pickle_of(state(tensor((2**62, 2**62), (1, 1)))),
    "huge_offset.pth": pickle_of(state(tensor((2, 2), (1, 1), 2**62))),
    "many_dimensions.pth": pickle_of(state(tensor((1,) * 10_000, (1,) * 10_000))),
    "huge_storage.pth": pickle_of(state(tensor((4,), (1,), count=2**62))),
    "large_storage.pth": pickle_of(state(tensor((4,), (1,), count=2**40))),
    "memo_index.pth": pickle_of(b"\x80\x02}r\xff\xff\xff\x7f."),
    "nested_tuples_as_key.pth": pickle_of(b"\x80\x02}" + b"N" + b"\x85" * 300_000 + b"Ns."),
    "doubled_tuple_as_key.pth": pickle_of(b"\x80\x02}" + DOUBLED_TUPLE + b"Ns."),
    "doubled_tuple_in_a_set.pth": pickle_of(b"\x80\x04\x8f(" + DOUBLED_TUPLE + b"\x90."),
    "nested_lists.pth": pickle_of(b"\x80\x02" + b"]" * 900_000 + b"a" * 90_000 + b"."),
    "many_objects.pth": pickle_of(b"\x80\x02](" + b"N" * 20_000_000 + b"e."),
    "many_classes.pth": pickle_of(b"\x80\x02](" + b"".join(b"cm\nc%d\n" % n for n in range(200_000)) + b"e."),
    "large_integers.pth": pickle_of(b"\x80\x02}\x8b" + struct.pack("<i", 10**7) + bytes([1]) * 10**7 + b"Ns."),
    "colliding_integers.pth": pickle_of(
        b"\x80\x02}(" + b"".join(number(index * (2**61 - 1)) + b"N" for index in range(1, 50_000)) + b"u."
    ),
    "copied_dictionaries.pth": pickle_of(
        b"\x80\x02" + SHARED_ITEMS + b"](" + b"ccollections\nOrderedDict\nh\x01\x85R" * 20_000 + b"e."
    ),
    "dictionary_in_itself.pth": pickle_of(
        b"\x80\x02}q\x00"
        + b"".join(b"U" + bytes([len(name)]) + name + b"h\x00s" for name in (b"model", b"state_dict", b"ema", b"net"))
        + b"(" + b"".join(b"X\x06\x00\x00\x00%06dN" % index for index in range(100_000)) + b"u."
    ),
    "legacy_string.pth": legacy(b"\x80\x04\x8d" + struct.pack("<Q", 2**62)),
    "legacy_bytes.pth": legacy(b"\x80\x04\x8e" + struct.pack("<Q", 2**40)),
    "legacy_storage.pth": legacy(state(tensor((4,), (1,), count=2**40))),
    "legacy_count.pth": legacy(state(tensor((4,), (1,))), rest=struct.pack("<Q", 2**60)),
    "long_header.safetensors": safetensors(b"{}", 2**63),
    "sparse_header.safetensors": sparse_safetensors,
    "nested_header.safetensors": safetensors(b'{"weight":' + b"[" * 1_000_000),
    "huge_shape.safetensors": safetensors(declare([2**40, 2**40])),
    "overflow.safetensors": safetensors(declare([2**62, 4], 2**64 - 1)),
    "outside.safetensors": safetensors(declare([2**30], 2**32)),
    "negative_shape.safetensors": safetensors(declare([-4])),
    "huge_shape.h5": hdf5(shape=(2**40,), chunks=(2**20,)),
    "compressed_zeros.h5": hdf5(shape=(2**26,), chunks=(2**20,), compression="gzip", data=np.zeros(2**26, "f4")),
    "another_file.h5": hdf5_of_another_file,
    "compressed.keras": keras_archive,
}  # fmt: skip


def write_bombs(folder: Path) -> list[Path]:
    """Writes all files, and returns their paths."""
    paths = []
    for name, write in BOMBS.items():
        paths.append(folder / name)
        write(paths[-1])
    return paths


def write_intact(folder: Path) -> Path:
    """Writes an intact file, which shows that the opcodes above are valid."""
    path = folder / "intact.pth"
    write_zip(path, state(tensor((2, 2), (2, 1))))
    return path
