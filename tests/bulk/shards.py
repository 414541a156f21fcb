"""Shards of small images, for tests of bulk captioning."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from small_run import box_image

from caption_jax.bulk.bulk_job import Job
from caption_jax.specs import DecodeSpec
from input_pipeline.limits import DEFAULT_LIMITS

RED, BLUE = ("red", "left"), ("blue", "right")


def encode(scene: tuple[str, str] = RED) -> bytes:
    """Returns an image of `box_image` as a PNG."""
    buffer = io.BytesIO()
    box_image(*scene).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_job(workdir: Path, folder: Path, **changes) -> Job:
    """Returns a job with greedy decoding and small batches."""
    settings = {"decode": DecodeSpec(max_length=10), "limits": DEFAULT_LIMITS, "batch_size": 4} | changes
    return Job(str(workdir), "best", folder=str(folder), **settings)
