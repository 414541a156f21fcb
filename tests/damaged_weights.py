"""Damage to files of checkpoints, models and weights, and checks that each file is read or rejected in one line."""

from __future__ import annotations

import functools
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from damaged_files import apply_edits, edits
from hypothesis import strategies as st

from caption_jax.errors import UserError


def truncate(path: Path) -> None:
    """Keeps the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Deletes the contents of a file."""
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    """Replaces the contents of a file with zeros, as a crash of some file systems does."""
    path.write_bytes(bytes(path.stat().st_size))


def flip_bit(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": truncate,
    "empty": empty,
    "zeros": fill_with_zeros,
    "flipped bit": flip_bit,
}


GOLDEN = Path(__file__).resolve().parent / "golden" / "pth"
WEIGHT_FILES = ("zip.pth", "legacy.pth", "pickle.pth", "weights.safetensors", "weights.h5")


@functools.cache
def make_weights(name: str) -> bytes:
    """Returns a small intact weight file; "pickle.pth" stands for the pickle in a zip archive."""
    if name in ("zip.pth", "legacy.pth"):
        return (GOLDEN / name).read_bytes()
    if name == "pickle.pth":
        with zipfile.ZipFile(GOLDEN / "zip.pth") as archive:
            return archive.read(next(member for member in archive.namelist() if member.endswith("data.pkl")))
    arrays = {"a.weight": np.ones((2, 3), np.float32), "b.bias": np.arange(4)}
    if name == "weights.safetensors":
        from safetensors.numpy import save

        return save(arrays)
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key.replace(".", "/"), data=array)
    return buffer.getvalue()


@st.composite
def damaged_weights(draw) -> tuple[str, bytes]:
    """Name and contents of a weight file of any format, with edited bytes or opcodes."""
    name = draw(st.sampled_from(WEIGHT_FILES))
    content = make_weights(name)
    if name == "pickle.pth" and draw(st.booleans()):
        position, length = draw(st.integers(2, len(content))), draw(st.integers(0, 20))
        opcodes = draw(st.lists(st.sampled_from(PICKLE_OPCODES), max_size=8))
        return name, content[:position] + b"".join(opcodes) + content[position + length :]
    return name, apply_edits(content, draw(edits))


PICKLE_OPCODES = [
    *(bytes([code]) for code in b"()]}.0123NRQlotaesudb\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"),
    *(b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\x7f" * 8),
    *(b"ctorch\nFloatStorage\n", b"cos\nsystem\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
    pickle.dumps({"a": (1, [2])}, 2)[2:-1],
]


def check_weights(data: tuple[str, bytes]) -> bool:
    """Opens a weight file and reads its tensors.

    Returns whether it is readable. Errors other than `UserError`, and messages without the file, propagate.
    """
    from caption_jax.models.backbones.efficientnet_variants import get_variant
    from caption_jax.pretrained.weight_files import open_weights

    name, content = data
    path = Path(_make_folder().name) / name
    if name == "pickle.pth":
        with zipfile.ZipFile(GOLDEN / "zip.pth") as source, zipfile.ZipFile(path, "w") as target:
            for member in source.namelist():
                target.writestr(member, content if member.endswith("data.pkl") else source.read(member))
    else:
        path.write_bytes(content)
    try:
        for tensor in open_weights(path, get_variant("b0")).tensors.values():
            values = tensor.read()
            assert values.shape == tuple(tensor.shape) and values.nbytes < 2**24
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return False
    return True


@st.composite
def damaged_records(draw) -> tuple[str, bytes]:
    """Name and contents of a JSON file of a checkpoint, with edited bytes."""
    name = draw(st.sampled_from(["checksums.json", "records/metadata", "weights/_METADATA", "_CHECKPOINT_METADATA"]))
    return name, apply_edits(_make_records()[name], draw(edits))


def check_records(data: tuple[str, bytes]) -> bool:
    """Checks a checkpoint with a damaged JSON file. Returns whether it is intact. Errors propagate."""
    from etils import epath

    from caption_jax.runs.checkpoint_integrity import find_damage

    name, content = data
    folder = Path(_make_folder().name) / "1"
    for other, intact in _make_records().items():
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(content if other == name else intact)
    damage = find_damage(epath.Path(folder), ("weights", "records"))
    assert "\n" not in damage and len(damage) < 1000
    return not damage


@functools.cache
def _make_records() -> dict[str, bytes]:
    """Returns the files of a checkpoint without arrays, by path."""
    from etils import epath

    from caption_jax.runs.checkpoint_integrity import write_checksums

    files = {"records/metadata": {"step": 3}, "weights/_METADATA": {"a": [1, 2]}, "_CHECKPOINT_METADATA": {"time": 1}}
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            (Path(name) / path).parent.mkdir(exist_ok=True)
            (Path(name) / path).write_text(json.dumps(content))
        write_checksums(epath.Path(name))
        return {path: (Path(name) / path).read_bytes() for path in (*files, "checksums.json")}


@functools.cache
def _make_folder() -> tempfile.TemporaryDirectory:
    """Makes a folder that is deleted when the process exits."""
    return tempfile.TemporaryDirectory()
