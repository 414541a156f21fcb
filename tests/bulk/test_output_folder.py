"""An output folder is continued with the same inputs and settings, and refused with others."""

from __future__ import annotations

import json
import re

import pytest
from shards import make_job

from caption_jax.bulk.bulk_job import Job
from caption_jax.bulk.output_folder import Manifest, is_output_folder, locked_folder
from caption_jax.bulk.work_units import IMAGES, Unit
from caption_jax.errors import ConfigError, LockedError, WorkdirError
from caption_jax.retrieval.index_format import ModelIdentity
from caption_jax.specs import DecodeSpec

MODEL = ModelIdentity(930, "ab" * 32)
UNITS = [Unit("tar", ("/a.tar",), 10, "123"), Unit(IMAGES, ("/1.png", "/2.png"))]


def make_manifest(model=MODEL, units=UNITS, **changes) -> Manifest:
    job = make_job("/run", "/out", **changes)
    return Manifest.create(model, job.list_settings(), units)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": ModelIdentity(940, "cd" * 32)}, "the model (step 930, weights abababababab), not step 940"),
        ({"vectors": True}, "--vectors=false, not true"),
        ({"alternatives": 2, "decode": DecodeSpec(method="beam")}, "--alternatives=0, not 2"),
        ({"decode": DecodeSpec(max_length=10, method="beam")}, "config.decode.method=greedy, not beam"),
        ({"images_per_part": 7}, "--images_per_part=1000, not 7"),
        ({"units": UNITS[:1]}, "2 shards or groups of images, not 1"),
        ({"units": [Unit("tar", ("/b.tar",), 10), UNITS[1]]}, "the input /a.tar where there is now /b.tar"),
        ({"units": [Unit("tar", ("/a.tar",), 11, "123"), UNITS[1]]}, "another version of /a.tar, or of the images"),
        ({"units": [Unit("tar", ("/a.tar",), 10, "124"), UNITS[1]]}, "another version of /a.tar, which has been"),
    ],
)
def test_a_folder_of_other_inputs_or_settings_is_refused_with_the_difference(tmp_path, changes, difference):
    with locked_folder(str(tmp_path / "out"), make_manifest()):
        assert is_output_folder(str(tmp_path / "out"))
    with locked_folder(str(tmp_path / "out"), make_manifest(batch_size=8)):  # which does not change captions
        pass
    with (
        pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'out'} was written with {difference}")),
        locked_folder(str(tmp_path / "out"), make_manifest(**changes)),
    ):
        pass


def test_a_folder_without_versions_of_the_shards_goes_on(tmp_path):
    folder = tmp_path / "out"
    with locked_folder(str(folder), make_manifest()):
        pass
    path = folder / "_manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"units": [unit[:2] for unit in content["units"]]}))
    with locked_folder(str(folder), make_manifest()):
        pass


def test_a_folder_of_other_files_a_damaged_manifest_and_a_second_process_are_refused(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(ConfigError, match="has other files: set --out"), locked_folder(str(tmp_path), make_manifest()):
        pass
    folder = str(tmp_path / "out")
    with (
        locked_folder(folder, make_manifest()),
        pytest.raises(LockedError, match="another process is writing"),
        locked_folder(folder, make_manifest()),
    ):
        pass
    (tmp_path / "out" / "_manifest.json").write_text("{}")
    with pytest.raises(WorkdirError, match="is damaged"), locked_folder(folder, make_manifest()):
        pass


def test_a_folder_in_a_bucket_is_continued(bucket):
    for _ in range(2):
        with locked_folder("gs://bucket/out", make_manifest()):
            assert is_output_folder("gs://bucket/out")
    with pytest.raises(ConfigError), locked_folder("gs://bucket/out", make_manifest(vectors=True)):
        pass


@pytest.mark.parametrize(
    ("decode", "remedy"),
    [
        (DecodeSpec(), "set --config.decode.method=beam --config.decode.num_beams=4"),
        (DecodeSpec(method="beam", num_beams=3), "but there are 3"),
        (DecodeSpec(method="sample"), "set --config.decode.num_samples=4"),
    ],
)
def test_alternatives_need_as_many_candidates(decode, remedy):
    with pytest.raises(ConfigError, match=remedy):
        make_job("/run", "/out", decode=decode, alternatives=3)


def test_the_decoding_returns_the_alternatives():
    job: Job = make_job("/run", "/out", decode=DecodeSpec(method="beam", max_length=0), alternatives=2)
    assert (job.complete_decode(20).candidates, job.complete_decode(20).max_length) == (3, 20)
