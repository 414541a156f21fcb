"""Writes files in the format of `torch.save` without PyTorch, including objects that must not be loaded."""

from __future__ import annotations

import collections
import dataclasses
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Global:
    """A reference to a class or function by name, which is not imported."""

    module: str
    name: str

    def __call__(self):
        raise AssertionError("required by the pickler, but never called")


@dataclasses.dataclass(frozen=True)
class Instance:
    """An object of a class that the reader does not import, such as argparse.Namespace, and its attributes."""

    kind: Global
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    kind: Global
    count: int


class _TorchPickler(pickle._Pickler):  # the pickler in C cannot be extended in this way
    """Pickles NumPy arrays as torch tensors, and `Global` and `Instance` as references to other classes."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.arrays: list[np.ndarray] = []

    def persistent_id(self, obj: Any) -> Any:
        return ("storage", obj.kind, obj.key, "cpu", obj.count) if isinstance(obj, _Storage) else None

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Instance):
            self.save_reduce(obj.kind, (), obj.attributes)
        elif isinstance(obj, np.ndarray):
            storage = _Storage(str(len(self.arrays)), Global("torch", _STORAGES[obj.dtype.name]), obj.size)
            self.arrays.append(obj)
            strides = tuple(stride // obj.itemsize for stride in np.array(obj, order="C").strides)
            arguments = (storage, 0, obj.shape, strides, False, collections.OrderedDict())
            self.save_reduce(Global("torch._utils", "_rebuild_tensor_v2"), arguments)
        else:
            super().save(obj, save_persistent_id)


def save(content: Any, path: Path) -> Path:
    """Writes `content` like `torch.save`, and returns `path`."""
    buffer = io.BytesIO()
    pickler = _TorchPickler(buffer)
    pickler.dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, array in enumerate(pickler.arrays):
            archive.writestr(f"archive/data/{number}", np.ascontiguousarray(array).tobytes())
    return path
