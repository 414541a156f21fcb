"""Counts conversions of JAX arrays to NumPy arrays or Python numbers, which transfer data from the devices.

JAX's transfer guard does not apply to CPUs, where a conversion may share memory with the array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from jax._src.array import ArrayImpl


@contextlib.contextmanager
def count_conversions() -> Iterator[list[tuple[int, ...]]]:
    """Yields a list to which the shape of each converted array is appended, in all threads."""
    shapes: list[tuple[int, ...]] = []
    convert = ArrayImpl._single_device_array_to_np_array_did_copy

    def count_and_convert(array: ArrayImpl) -> object:
        shapes.append(array.shape)
        return convert(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArrayImpl, "_single_device_array_to_np_array_did_copy", count_and_convert)
        yield shapes
