"""Reads PyTorch files (`.pth`, `.ckpt`, `.pth.tar`) without PyTorch and without executing code from the file.

A PyTorch file is a pickle with separate tensor data, in a zip archive or (before PyTorch 1.6) appended to the pickle.
Unpickling can call any Python object by name. This reader supports only the names that a dictionary of tensors needs.
All others, which training checkpoints contain in addition to the weights (optimizer states, arguments, callbacks),
become an `UnknownObject`: nothing is imported or called.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from caption_jax.errors import WeightsError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


@dataclass(frozen=True)
class _StorageType:
    """Replaces torch.FloatStorage and the other storage classes during unpickling."""

    dtype: np.dtype


@dataclass(frozen=True)
class _Storage:
    """A contiguous array in the file, identified by its key and read later."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are read by `read()`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    _read: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """Reads the values into a new array."""
        return self._read()


class UnknownObject:
    """An object of a class or function other than those of tensors. Replaces it without importing or calling it.

    Attributes:
        origin: qualified name of the class or function, such as "argparse.Namespace".
        attributes: the attributes that the file stores for the object; {} if there are none.
    """

    origin = ""

    def __new__(cls, *_: Any, **__: Any) -> UnknownObject:
        """Creates an object without attributes, with any arguments."""
        instance = super().__new__(cls)
        instance.attributes = {}
        return instance

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.attributes = state

    def __call__(self, *_: Any, **__: Any) -> UnknownObject:
        """Returns this object, in place of the result of a function."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignores an item of a list, which the unpickler appends."""

    def extend(self, items: Any) -> None:
        """Ignores items of a list."""

    def add(self, item: Any) -> None:
        """Ignores an item of a set."""


def read_torch_file(path: Path) -> Any:
    """Returns the content of a PyTorch file, with `LazyTensor` for tensors and `UnknownObject` for other classes.

    Raises:
        WeightsError: the file is not a PyTorch file or is damaged.
    """
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except WeightsError:
        raise
    except (
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise WeightsError(f"{path} is not a complete PyTorch weight file ({error!r}); download it again") from error


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, strings and tensors; everything else becomes an `UnknownObject`."""

    def __init__(self, file: IO[bytes], path: Path, load_storage: Callable[[_Storage], np.ndarray]) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path
        self._load_storage = load_storage
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]))
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return partial(_rebuild_tensor, self._path, self._load_storage)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda data, *_: data
        return type(name, (UnknownObject,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage | UnknownObject:
        kind, storage_type, key, _, count = pid[:5]
        if isinstance(storage_type, type) and issubclass(storage_type, UnknownObject):
            return storage_type()  # a tensor of an unsupported type
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown type of persistent object {kind!r}")
        if len(pid) > 5 and pid[5] is not None:
            raise WeightsError(
                f"{self._path}: storages that are views of others are not supported; save the file again"
            )
        return self.storages.setdefault(str(key), _Storage(str(key), storage_type.dtype, int(count)))


def _rebuild_tensor(
    path: Path,
    load_storage: Callable[[_Storage], np.ndarray],
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
) -> LazyTensor | UnknownObject:
    if isinstance(storage, UnknownObject):
        return storage
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError("tensor without storage")
    shape = tuple(int(size) for size in shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or min(strides, default=0) < 0 or min(shape, default=1) < 0:
        raise WeightsError(f"{path}: tensor with negative sizes; the file is damaged")
    if math.prod(shape) and last >= storage.count:
        raise WeightsError(f"{path}: tensor exceeds the bounds of storage {storage.key!r}; the file is damaged")

    def read() -> np.ndarray:
        values = load_storage(storage)
        byte_strides = [stride * values.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(values[offset:], shape, byte_strides).copy()

    return LazyTensor(shape, storage.dtype, read)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"{path} is not a PyTorch file: the zip archive has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
            raise WeightsError(f"{path} has big-endian values; save it again on a little-endian machine")
        content = archive.read(pickles[0])

    def load_storage(storage: _Storage) -> np.ndarray:
        with zipfile.ZipFile(path) as archive:
            return _decode_storage(path, storage, archive.read(f"{root}data/{storage.key}"))

    return _TensorUnpickler(io.BytesIO(content), path, load_storage).load()


def _read_legacy(path: Path) -> Any:
    """Reads the format used before PyTorch 1.6.

    The file contains pickles of a magic number, a protocol number, system information, the content and the storage
    keys, followed by an 8-byte count and the values of each storage.
    """
    offsets: dict[str, int] = {}

    def load_storage(storage: _Storage) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(offsets[storage.key])
            count = int.from_bytes(file.read(8), "little")
            return _decode_storage(path, storage, file.read(count * storage.dtype.itemsize))

    with open(path, "rb") as file:
        magic = _TensorUnpickler(file, path, load_storage).load()
        if magic != _LEGACY_MAGIC or _TensorUnpickler(file, path, load_storage).load() != _LEGACY_PROTOCOL:
            raise WeightsError(f"{path} is not a PyTorch weight file: neither a zip archive nor a known magic number")
        system = _TensorUnpickler(file, path, load_storage).load()
        if not system.get("little_endian", True):
            raise WeightsError(f"{path} has big-endian values; save it again on a little-endian machine")
        reader = _TensorUnpickler(file, path, load_storage)
        content = reader.load()
        keys = _TensorUnpickler(file, path, load_storage).load()
        position = file.tell()
        for storage in (reader.storages[str(key)] for key in keys):
            offsets[storage.key] = position
            position += 8 + storage.count * storage.dtype.itemsize
    return content


def _decode_storage(path: Path, storage: _Storage, content: bytes) -> np.ndarray:
    if len(content) < storage.count * storage.dtype.itemsize:
        raise WeightsError(f"{path}: storage {storage.key!r} is truncated; download the file again")
    return np.frombuffer(content, storage.dtype.newbyteorder("<") if storage.dtype.kind in "fiu" else storage.dtype)
