"""Uploads that try to crash, stall or fill the memory of a server."""

from __future__ import annotations

import base64
import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hostile_files
import hostile_images
import image_fuzzing

PATHS = ("/v1/captions", "/v1/embeddings", "/v1/search")
_RAW_KINDS = ("image/jpeg", "image/png", "application/octet-stream")
_MAX_FILE_BYTES = 40 * 2**20  # just above the default limit of a request


class HostileUpload(NamedTuple):
    """A request: its path, body and content type."""

    path: str
    content: bytes
    kind: str


def make_uploads(count: int, seed: int, files: Sequence[bytes] = ()) -> Iterator[HostileUpload]:
    """Yields random hostile uploads: damaged images in each kind of body, and bodies that are themselves damaged.

    Args:
        count: number of uploads.
        seed: random seed.
        files: contents that are each sent once, before the others.
    """
    rng = random.Random(seed)
    for number in range(count):
        content = files[number] if number < len(files) else image_fuzzing.damage(rng)
        body, kind = _wrap(rng, content)
        if rng.random() < 0.2:
            body = _damage_body(rng, body)
        yield HostileUpload(rng.choice(PATHS), body, kind)


def read_hostile_files() -> list[bytes]:
    """Returns the contents of hostile caption files, except for pipes, links and files above the limit of a request."""
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (write, _) in (hostile_files.REJECTED | hostile_files.PARTLY_REJECTED).items():
            path = Path(folder) / name
            write(path)
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= _MAX_FILE_BYTES:
                contents.append(path.read_bytes())
            path.unlink()
    return contents


def make_bombs() -> Iterator[bytes]:
    """Yields images that need far more memory or time than files of their size."""
    for make in hostile_images.BOMBS.values():
        if len(content := make()) <= _MAX_FILE_BYTES:
            yield content


def _wrap(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """Returns a body with an image, in one of the three forms, and its content type."""
    form = rng.randrange(3)
    if form == 0:
        return content, rng.choice(_RAW_KINDS)
    if form == 1:
        return json.dumps({"images": [base64.b64encode(content).decode()]}).encode(), "application/json"
    name = rng.choice((b"a.jpg", b"../../etc/passwd", b"\\ud800", b"x" * 5000, b"", b'"; name="limit'))
    head = b'--edge\r\nContent-Disposition: form-data; name="images"; filename="' + name + b'"\r\n\r\n'
    charset = rng.choice(("", "; charset=utf-7", "; charset=unicode_escape", "; charset=undefined"))
    return head + content + b"\r\n--edge--\r\n", f"multipart/form-data; boundary=edge{charset}"


def _damage_body(rng: random.Random, body: bytes) -> bytes:
    kind, position = rng.randrange(5), rng.randrange(len(body) + 1)
    if kind == 0:
        return body[:position]
    if kind == 1:
        return body[:position] + rng.randbytes(8) + body[position + 8 :]
    if kind == 2:
        return b"--edge\r\nContent-Disposition: form-data\r\n\r\n" * 2000 + body
    if kind == 3:
        return b"[" * 100_000 + body
    return b'{"images": ["", "' + b"\\ud800" * 1000 + b'"], "options": {"prefix": "\\ud800"}}'
