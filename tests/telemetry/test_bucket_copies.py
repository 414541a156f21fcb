"""Event files and profiles on a bucket, to which their libraries cannot write."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from caption_jax.specs import ProfileSpec
from caption_jax.telemetry import bucket_copies
from caption_jax.telemetry.bucket_copies import BucketEventWriter, FolderCopy
from caption_jax.telemetry.tracing import Trace


class LineWriter:
    """A metric writer that appends a line per call to a local file once it is flushed or closed."""

    def __init__(self, folder: str):
        self._file = (Path(folder) / "events").open("w", buffering=1 << 20)

    def write_scalars(self, step, values):
        self._file.write(f"scalars {step} {values}\n")

    def write_images(self, step, images):
        self._file.write(f"images {step}\n")

    def write_texts(self, step, texts):
        self._file.write(f"texts {step}\n")

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.close()


def test_event_files_are_copied_when_they_are_closed(bucket):
    writer = BucketEventWriter("gs://bucket/run/tensorboard", LineWriter)
    writer.write_texts(0, {"config": "text"})
    writer.write_scalars(1, {"loss": 2.0})
    writer.write_images(1, {})
    assert not (bucket / "run").exists()
    writer.close()
    assert (bucket / "run/tensorboard/events").read_text() == "texts 0\nscalars 1 {'loss': 2.0}\nimages 1\n"


def test_event_files_are_copied_while_a_run_lasts(bucket, monkeypatch):
    monkeypatch.setattr(bucket_copies, "_UPLOAD_SECONDS", 0)
    writer = BucketEventWriter("gs://bucket/run", LineWriter)
    for step in range(1, 4):
        writer.write_scalars(step, {})
        assert (bucket / "run/events").read_text().count("scalars") == step
    writer.close()


def test_only_files_that_have_grown_are_copied(bucket, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    copy = FolderCopy(tmp_path, bucket / "run")
    copy.update()
    (bucket / "run/b").write_text("changed on the bucket")
    (tmp_path / "inner" / "a").write_text("12")
    copy.update()
    assert (bucket / "run/inner/a").read_text() == "12"
    assert (bucket / "run/b").read_text() == "changed on the bucket"


@pytest.mark.slow
def test_a_profile_is_copied_to_the_bucket(bucket):
    trace = Trace(bucket / "profile", ProfileSpec(start=0, steps=1))
    trace.before_step(0, None)
    jax.jit(lambda x: x + 1)(1.0).block_until_ready()
    trace.before_step(1, jax.numpy.zeros(1))
    runs = list((bucket / "profile/plugins/profile").iterdir())
    assert any(path.name.endswith(".xplane.pb") for path in runs[0].iterdir())
