"""PyTorch files are read without PyTorch and cannot execute code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caption_jax.errors import WeightsError
from caption_jax.pretrained.weight_files import open_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "pth"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
EXPECTED = {
    "a": BASE,
    "view": BASE[1:3, 2:5],
    "transposed": BASE.T,
    "half": BASE[:1].astype(np.float16),
    "brain": BASE[:1],  # bfloat16 in the file
    "count": np.array(7),
    "flags": np.array([True, False]),
    "parameter": np.ones(2, np.float32),
}


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_tensors_of_all_types_and_layouts_are_read(name):
    tensors = {key.removeprefix("module."): value for key, value in open_weights(GOLDEN / name).tensors.items()}
    assert list(tensors) == list(EXPECTED)
    for key, expected in EXPECTED.items():
        assert tensors[key].shape == expected.shape
        np.testing.assert_array_equal(tensors[key].read().astype(expected.dtype), expected, err_msg=key)
    assert tensors["half"].dtype == np.float16
    assert tensors["brain"].dtype.name == "bfloat16"


class _Malicious:
    """An object that is pickled as a call to `os.system`, which creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("file_format", ["zip", "legacy"])
def test_files_that_execute_code_are_rejected(file_format, tmp_path):
    content = pickle.dumps({"weight": _Malicious(tmp_path / "executed")}, protocol=2)
    path = tmp_path / "malicious.pth"
    if file_format == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        path.write_bytes(magic + content + pickle.dumps([], 2))
    with pytest.raises(WeightsError, match=r"malicious\.pth: .*refusing to load the Python object \w+\.system"):
        open_weights(path)
    assert not (tmp_path / "executed").exists()


def test_files_without_a_state_dict_are_rejected(tmp_path):
    path = tmp_path / "weights.pth"
    for content, message in (([1, 2], "list"), ({"epoch": 3}, "epoch")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        with pytest.raises(WeightsError, match=message):
            open_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"data\.pkl"):
        open_weights(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_truncated_files_are_rejected(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=name):
            for tensor in open_weights(path).tensors.values():
                tensor.read()


def test_tensors_that_exceed_their_storage_are_rejected(tmp_path):
    # Changes the offset of the tensor "view" from 8 (pickled as K\x08 after the storage) to 200.
    path = tmp_path / "out_of_bounds.pth"
    with zipfile.ZipFile(GOLDEN / "zip.pth") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert content.count(b"QK\x08K\x02K\x03\x86") == 1
                content = content.replace(b"QK\x08K\x02K\x03\x86", b"QK\xc8K\x02K\x03\x86")
            target.writestr(name, content)
    with pytest.raises(WeightsError, match="exceeds the bounds of storage"):
        open_weights(path)


@pytest.mark.torch
def test_golden_files_match_torch():
    torch = pytest.importorskip("torch")
    tensors = torch.load(GOLDEN / "zip.pth")
    for key, expected in EXPECTED.items():
        np.testing.assert_array_equal(tensors[key].detach().float().numpy(), expected.astype(np.float32))
