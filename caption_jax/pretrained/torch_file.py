"""Reads PyTorch files (`.pth`, `.ckpt`, `.pth.tar`) without PyTorch and without executing code from the file.

A PyTorch file is a pickle with separate tensor data, in a zip archive or (before PyTorch 1.6) appended to the pickle.
`pickle_reader` reads the pickle. Only the names that a dictionary of tensors needs are supported. All others, which
training checkpoints contain in addition to the weights (optimizer states, arguments, callbacks), become an
`UnknownObject`: nothing is imported or called.

All sizes that a file declares are compared with the size of the file before anything is read or allocated.
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from caption_jax.errors import WeightsError
from caption_jax.pretrained.archives import ARCHIVE_ERRORS, open_archive, read_member
from caption_jax.pretrained.pickle_reader import PickleError, insert, read_pickle

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

_MAX_PICKLE_BYTES = 2**26  # the names, shapes and settings; 1,000 tensors need 200 KB
_MAX_COPIED_ITEMS = 1_000_000
_MAX_DIMENSIONS = 16
_MAX_COUNT = 2**48  # values of a storage
_MAX_EXPANDED_SIZE = 2**20  # values of a tensor that repeats those of its storage
_MAX_ORIGIN = 200  # characters


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
        origin: qualified name of the class or function, such as "argparse.Namespace", in printable ASCII.
        attributes: the attributes that the file stores for the object; {} if there are none.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.attributes: Mapping[Any, Any] = {}


class _OrderedDictType:
    """Replaces `collections.OrderedDict`."""


class _ParameterFunction:
    """Replaces the functions that rebuild a parameter from its tensor."""


class _TensorFunction:
    """Replaces the function that rebuilds a tensor from its storage."""


def read_torch_file(path: Path) -> Any:
    """Returns the content of a PyTorch file, with `LazyTensor` for tensors and `UnknownObject` for other classes.

    Raises:
        WeightsError: the file is not a PyTorch file or is damaged.
    """
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except PickleError as error:
        raise WeightsError(f"{path} is not a complete PyTorch weight file ({error}); download it again") from error
    except WeightsError:
        raise
    except (*ARCHIVE_ERRORS, IndexError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(f"{path} is not a complete PyTorch weight file ({error!r}); download it again") from error


class _TensorFactory:
    """Creates tensors and ordered dictionaries; everything else becomes an `UnknownObject`.

    Args:
        path: the file, for messages.
        load_storage: reads a storage.
        check_storage: raises an error if the file is too small for a storage.
    """

    def __init__(
        self,
        path: Path,
        load_storage: Callable[[_Storage], np.ndarray],
        check_storage: Callable[[_Storage], None] = lambda storage: None,
    ) -> None:
        self._path, self._load_storage, self._check_storage = path, load_storage, check_storage
        self._copied_items = 0
        self.storages: dict[str, _Storage] = {}

    def find(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _OrderedDictType()
        if module == "torch" and name in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name]))
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _TensorFunction()
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _ParameterFunction()
        return UnknownObject(ascii(f"{module}.{name}"[:_MAX_ORIGIN])[1:-1])

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        if isinstance(function, _OrderedDictType):
            return self._make_ordered_dict(arguments)
        if isinstance(function, _ParameterFunction):
            return arguments[0]
        if isinstance(function, _TensorFunction):
            return self._rebuild_tensor(*arguments[:4])
        return UnknownObject(function.origin if isinstance(function, UnknownObject) else type(function).__name__)

    def set_state(self, instance: Any, state: Any) -> None:
        if isinstance(instance, UnknownObject) and isinstance(state, dict):
            instance.attributes = state

    def load_persistent(self, reference: Any) -> _Storage | UnknownObject:
        kind, storage_type, key, _, count = reference[:5]
        if isinstance(storage_type, UnknownObject):
            return storage_type  # a tensor of an unsupported type
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise PickleError("unknown type of a persistent object")
        if len(reference) > 5 and reference[5] is not None:
            raise WeightsError(
                f"{self._path}: storages that are views of others are not supported; save the file again"
            )
        if type(count) is not int or not 0 <= count <= _MAX_COUNT or not isinstance(key, str | int):
            raise PickleError("a storage without a valid size")
        storage = self.storages.setdefault(str(key), _Storage(str(key), storage_type.dtype, count))
        self._check_storage(storage)
        return storage

    def _make_ordered_dict(self, arguments: tuple[Any, ...]) -> collections.OrderedDict:
        """Returns a dictionary of (key, value) pairs, which Python 2 passes as an argument."""
        result: collections.OrderedDict = collections.OrderedDict()
        pairs = arguments[0] if arguments else []
        self._copied_items += len(pairs)
        if self._copied_items > _MAX_COPIED_ITEMS:
            raise PickleError(f"its dictionaries have more than {_MAX_COPIED_ITEMS:,} items")
        for key, value in pairs:
            insert(result, (key, value))
        return result

    def _rebuild_tensor(self, storage: Any, offset: int, shape: Any, strides: Any) -> LazyTensor | UnknownObject:
        if isinstance(storage, UnknownObject):
            return storage
        if not isinstance(storage, _Storage) or len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
            raise PickleError("a tensor without a valid storage or shape")
        if any(type(number) is not int for number in (offset, *shape, *strides)):
            raise PickleError("a tensor whose sizes are not integers")
        if offset < 0 or min(strides, default=0) < 0 or min(shape, default=1) < 0:
            raise WeightsError(f"{self._path}: tensor with negative sizes; the file is damaged")
        size = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if size and last >= storage.count:
            raise WeightsError(
                f"{self._path}: tensor exceeds the bounds of storage {storage.key!r}; the file is damaged"
            )
        if size > max(storage.count, _MAX_EXPANDED_SIZE):
            raise WeightsError(
                f"{self._path}: a tensor of shape {list(shape)} repeats a storage of {storage.count:,} values; save a "
                "copy of it (tensor.contiguous())"
            )

        def read() -> np.ndarray:
            values = self._load_storage(storage)
            byte_strides = [stride * values.itemsize for stride in strides]
            return np.lib.stride_tricks.as_strided(values[offset:], shape, byte_strides).copy()

        return LazyTensor(tuple(shape), storage.dtype, read)


def _read_zip(path: Path) -> Any:
    with open_archive(path) as archive:
        pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError(f"{path} is not a PyTorch file: the zip archive has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if root + "byteorder" in archive.namelist() and read_member(archive, root + "byteorder", 16) != b"little":
            raise WeightsError(f"{path} has big-endian values; save it again on a little-endian machine")
        content = read_member(archive, pickles[0], _MAX_PICKLE_BYTES)
        sizes = {info.filename: info.file_size for info in archive.infolist()}

    def check_storage(storage: _Storage) -> None:
        if sizes.get(f"{root}data/{storage.key}", 0) < storage.count * storage.dtype.itemsize:
            raise WeightsError(f"{path}: storage {storage.key!r} is truncated; download the file again")

    def load_storage(storage: _Storage) -> np.ndarray:
        try:
            with open_archive(path) as archive, archive.open(f"{root}data/{storage.key}") as member:
                content = member.read(storage.count * storage.dtype.itemsize)
        except ARCHIVE_ERRORS as error:
            raise WeightsError(f"{path}: storage {storage.key!r} is damaged ({error}); download it again") from error
        return _decode_storage(path, storage, content)

    return read_pickle(io.BytesIO(content), _TensorFactory(path, load_storage, check_storage))


def _read_legacy(path: Path) -> Any:
    """Reads the format used before PyTorch 1.6.

    The file contains pickles of a magic number, a protocol number, system information, the content and the storage
    keys, followed by an 8-byte count and the values of each storage.
    """
    offsets: dict[str, int] = {}
    file_size = path.stat().st_size

    def load_storage(storage: _Storage) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(offsets[storage.key])
            if int.from_bytes(file.read(8), "little") != storage.count:
                raise WeightsError(f"{path}: storage {storage.key!r} has another size than declared; download it again")
            return _decode_storage(path, storage, file.read(storage.count * storage.dtype.itemsize))

    def check_storage(storage: _Storage) -> None:
        if storage.count * storage.dtype.itemsize > file_size:
            raise WeightsError(f"{path}: storage {storage.key!r} is truncated; download the file again")

    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
        head = _TensorFactory(path, load_storage)
        if read_pickle(file, head) != _LEGACY_MAGIC or read_pickle(file, head) != _LEGACY_PROTOCOL:
            raise WeightsError(f"{path} is not a PyTorch weight file: neither a zip archive nor a known magic number")
        if not read_pickle(file, head).get("little_endian", True):
            raise WeightsError(f"{path} has big-endian values; save it again on a little-endian machine")
        factory = _TensorFactory(path, load_storage, check_storage)
        content = read_pickle(file, factory)
        keys = read_pickle(file, head)
        position = file.tell()
        for storage in (factory.storages[str(key)] for key in keys):
            offsets[storage.key] = position
            position += 8 + storage.count * storage.dtype.itemsize
    if missing := factory.storages.keys() - offsets.keys():
        raise WeightsError(f"{path} has no storage {min(missing)!r:.100}; download the file again")
    if position > file_size:
        raise WeightsError(f"{path} has {file_size:,} of {position:,} bytes; download it again")
    return content


def _decode_storage(path: Path, storage: _Storage, content: bytes) -> np.ndarray:
    if len(content) < storage.count * storage.dtype.itemsize:
        raise WeightsError(f"{path}: storage {storage.key!r} is truncated; download the file again")
    return np.frombuffer(content, storage.dtype.newbyteorder("<") if storage.dtype.kind in "fiu" else storage.dtype)
