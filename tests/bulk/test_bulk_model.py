"""A worker gives the captions and vectors of `Captioner`, and a run goes on where it ended. Ray is not needed."""

from __future__ import annotations

import contextlib
import os
import pickle

import numpy as np
import pytest
from shards import BLUE, RED, encode, make_job, write_tar

import caption_jax
from caption_jax.bulk import bulk_model, bulk_run
from caption_jax.bulk.bulk_model import BulkModel
from caption_jax.bulk.bulk_run import run_job
from caption_jax.bulk.parts import Counts, Row, list_parts, make_schema
from caption_jax.bulk.ray_pool import UnitResult, UnitWorker
from caption_jax.bulk.unit_images import open_images
from caption_jax.bulk.work_units import IMAGES, Unit, find_units
from caption_jax.specs import DecodeSpec


@pytest.fixture
def shard(tmp_path) -> Unit:
    images = {f"{number}.png": encode((RED, BLUE)[number % 2]) for number in range(5)}
    write_tar(tmp_path / "a.tar", images | {"broken.png": b"\x89PNG\r\n\x1a\n", "last.png": encode(BLUE)})
    return find_units([str(tmp_path / "a.tar")], 10)[0]


class FakeModel:
    """Captions an image with its length; stands for `BulkModel`, which compiles programs."""

    def __init__(self, job):
        if not os.path.isdir(job.workdir):
            raise FileNotFoundError(f"{job.workdir} is missing")
        self.job, self.schema = job, make_schema(0, 0)

    def caption(self, unit):
        rows = []
        for image in open_images(unit, self.job.limits):
            content = image.image()
            is_broken = len(content) < 20
            error = "broken" if is_broken else None
            rows.append(Row(image.source, image.key, None if is_broken else str(len(content)), error=error))
        return rows


@pytest.fixture
def fake_model(monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(bulk_model, "BulkModel", FakeModel)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which a worker changes


@pytest.mark.slow
def test_captions_are_those_of_the_captioner_and_errors_are_rows(small_workdir, shard, tmp_path):
    (tmp_path / "0.png").write_bytes(encode(RED))
    files = Unit(IMAGES, (str(tmp_path / "0.png"), str(tmp_path / "missing.png")))
    model = BulkModel(make_job(small_workdir, tmp_path))
    rows = model.caption(shard)
    captioner = caption_jax.load(small_workdir, decode_config=DecodeSpec(max_length=10), batch_size=4)
    expected = captioner.caption([encode((RED, BLUE)[number % 2]) for number in (0, 1, 2, 3, 4, 1)])
    assert [row.key for row in rows] == [*(f"{number}.png" for number in range(5)), "broken.png", "last.png"]
    good = [row for row in rows if row.error is None]
    assert [row.caption for row in good] == [caption.text for caption in expected]
    assert [row.log_prob for row in good] == pytest.approx([caption.log_prob for caption in expected], abs=1e-5)
    assert rows[5].caption is None and "cannot be decoded" in rows[5].error
    first, missing = model.caption(files)
    assert (first.caption, first.size) == (expected[0].text, len(encode(RED)))
    assert missing.error == "does not exist" and missing.size is None


@pytest.mark.slow
def test_vectors_and_alternatives_are_those_of_the_captioner(searchable_workdir, shard, tmp_path):
    decode = DecodeSpec(method="beam", num_beams=3, max_length=10)
    rows = BulkModel(make_job(searchable_workdir, tmp_path, decode=decode, vectors=True, alternatives=2)).caption(shard)
    captioner = caption_jax.load(searchable_workdir, decode_config=decode, batch_size=4)
    images = [encode((RED, BLUE)[number % 2]) for number in (0, 1, 2, 3, 4, 1)]
    good = [row for row in rows if row.error is None]
    np.testing.assert_allclose([row.vector for row in good], captioner.embed_images(images), atol=1e-5)
    assert [row.caption for row in good] == [caption.text for caption in captioner.caption(images)]
    for row in good:
        log_probs = [row.log_prob, *(log_prob for _, log_prob in row.alternatives)]
        assert len(log_probs) == 3 and log_probs == sorted(log_probs, reverse=True)
        assert len({row.caption, *(text for text, _ in row.alternatives)}) == 3
    no_captions = make_job(searchable_workdir, tmp_path, captions=False, vectors=True)
    rows = BulkModel(no_captions).caption(shard)
    assert all(row.caption is None for row in rows) and rows[0].vector is not None


def run_without_ray(monkeypatch, stop_after: int = 100) -> list[int]:
    """Replaces the actors by a worker in this process; returns the numbers of the units that it will have captioned."""
    done: list[int] = []

    def caption_units(units, job, workers, *, verbose):
        worker = UnitWorker(job, 0)
        for number, unit in units.items():
            if len(done) == stop_after:
                raise KeyboardInterrupt
            row = worker({"number": number, "unit": pickle.dumps(unit)})
            assert not row["failure"], row["failure"]
            done.append(number)
            yield UnitResult(number, row["images"], row["errors"], tuple(filter(None, row["listed"].split("\n"))))

    monkeypatch.setattr(bulk_run, "require", lambda *_: None)
    monkeypatch.setattr(bulk_run, "running_ray", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(bulk_run, "caption_units", caption_units)
    return done


def test_an_interrupted_run_goes_on_and_captions_nothing_twice(
    small_workdir, fake_model, shard, tmp_path, monkeypatch, capsys
):
    for name in ("b", "c"):
        write_tar(tmp_path / f"{name}.tar", {"0.png": encode(RED)})
    units = find_units([str(tmp_path)], 10)
    job = make_job(small_workdir, tmp_path / "out")
    assert run_without_ray(monkeypatch, stop_after=2) == []
    with pytest.raises(KeyboardInterrupt):
        run_job(job, units, 2)
    assert list_parts(job.folder) == [0, 1] and not (tmp_path / "out" / "_summary.json").exists()
    done = run_without_ray(monkeypatch)
    assert run_job(job, units, 2) == Counts(images=9, errors=1) and done == [2]
    assert "9 images in 3 Parquet files, 1 of them now" in capsys.readouterr().out
    assert run_job(job, units, 2) == Counts(images=9, errors=1) and done == [2]
    assert "9 images in 3 Parquet files, all by earlier commands" in capsys.readouterr().out


def test_a_worker_reports_what_the_user_can_fix_and_skips_finished_files(fake_model, shard, tmp_path):
    row = {"number": 3, "unit": pickle.dumps(shard)}
    assert "missing" in UnitWorker(make_job(tmp_path / "missing", tmp_path), 0)(row)["failure"]
    assert "No such file" in UnitWorker(make_job(tmp_path, tmp_path / "none"), 0)(row)["failure"]
    worker = UnitWorker(make_job(tmp_path, tmp_path), 0)
    result = worker(row)
    assert (result["images"], result["errors"]) == (7, 1) and f"{shard.name}/broken.png: " in result["listed"]
    written = (tmp_path / "part-00003.parquet").stat().st_mtime_ns
    assert worker(row) == result | {"listed": ""}
    assert (tmp_path / "part-00003.parquet").stat().st_mtime_ns == written
