"""Damage to files of checkpoints, models and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


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
