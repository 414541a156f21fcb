"""The kinds of images that `Captioner.caption` accepts: paths, encoded bytes, file objects, PIL images and arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from input_pipeline.images import ImageError, ImageLike
from input_pipeline.limits import Limits

ImageInput = ImageLike | bytearray | memoryview | BinaryIO

_ENCODED = (bytes, bytearray, memoryview)
_EXPECTED = "a path, encoded bytes, a binary file, a PIL image or a NumPy array [height, width, 3]"


@dataclass(frozen=True)
class NamedImage:
    """An image for `Preprocessing.load`, and its name for error messages; None for the default name."""

    image: ImageLike
    name: str | None = None


def as_batch(method: str, images: Any) -> tuple[list[Any], bool]:
    """Returns the images of an argument that is one image or a sequence of images, and whether it is one image.

    An array [images, height, width, channels] is a sequence of images.

    Args:
        method: name of the called method, for messages.
        images: the argument.

    Raises:
        TypeError: the argument, or an element of the sequence, is neither an image nor a sequence of images.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images), False
    if is_image(images):
        return [images], True
    if isinstance(images, Sequence):
        for index, image in enumerate(images):
            check_image(image, f"{method}: image {index} of {len(images)}")
        return list(images), False
    if hasattr(images, "__iter__") and not hasattr(images, "__array__"):
        kind = type(images).__name__
        raise TypeError(f"{method} takes one image or a list of images, not a {kind}; pass list(...) of it")
    check_image(images, f"{method}: the image")
    raise AssertionError("unreachable: `check_image` accepts what `is_image` accepts")


def is_image(value: Any) -> bool:
    """Returns whether a value is of a type that can be a single image."""
    types = (str, os.PathLike, Image.Image, np.ndarray, *_ENCODED)
    return isinstance(value, types) or callable(getattr(value, "read", None))


def check_image(value: Any, name: str) -> None:
    """Raises TypeError if a value cannot be an image. The message starts with `name`."""
    if is_image(value):
        return
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    remedy = "; convert it with np.asarray" if hasattr(value, "__array__") else ""
    raise TypeError(f"{name} is a {kind}; expected {_EXPECTED}{remedy}")


def read_image(image: ImageInput, limits: Limits) -> NamedImage:
    """Reads a file object from its current position; returns other images unchanged.

    Args:
        image: the image.
        limits: limits on images; a file object is read up to one byte more than the limit on files.

    Raises:
        ImageError: the file cannot be read.
        TypeError: the file is open in text mode.
    """
    if isinstance(image, bytearray | memoryview):
        return NamedImage(bytes(image))
    if isinstance(image, str | os.PathLike | bytes | np.ndarray | Image.Image):
        return NamedImage(image)
    path = getattr(image, "name", None)
    name = path if isinstance(path, str) else type(image).__name__
    try:
        content = _read_up_to(image, limits.image_file_bytes + 1)
    except (OSError, ValueError) as error:  # closed files raise ValueError
        raise ImageError(name, f"cannot be read ({error})") from error
    if content is None:
        raise TypeError(f"{name} is open in text mode; open it with mode 'rb'")
    return NamedImage(content, name)


def _read_up_to(file: BinaryIO, size: int) -> bytes | None:
    """Reads up to `size` bytes of a file, which may return fewer per call; None if it is open in text mode."""
    blocks, remaining = [], size
    while remaining > 0:
        block = file.read(remaining)
        if not isinstance(block, _ENCODED):
            return None
        if not block:
            break
        blocks.append(bytes(block))
        remaining -= len(block)
    return b"".join(blocks)
