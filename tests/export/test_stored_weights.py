"""Exported folders with weights in int8 and bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_run
from etils import epath
from safetensors import SafetensorError, safe_open
from small_run import run_main
from varied_models import write_varied_model

import caption_jax
from caption_jax.cli.command_flags import WEIGHTS
from caption_jax.errors import ConfigError, WorkdirError
from caption_jax.export.exporter import export_model
from caption_jax.parameters.stored_dtypes import CHOICES, find_stored_dtype
from caption_jax.runs import artifact, loading, weights
from caption_jax.runs.loading import read_model
from caption_jax.runs.transfer import transfer_weights
from caption_jax.runs.weights import fingerprint

IMAGES = [small_run.box_image(colour, side) for colour in small_run.COLOURS for side in small_run.SIDES]
WIDE = {"model.decoder.width": 96, "model.decoder.heads": 4, "model.decoder.feed_forward": 192}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "boxes"
    write_varied_model(folder, WIDE)
    shutil.copy(next(folder.glob("model-*")) / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exported")
    return {dtype: Path(export_model(workdir, "folder", root / dtype, weights=dtype)) for dtype in WEIGHTS[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_captions_are_those_of_the_model_before_the_export(workdir, exported, dtype):
    before = caption_jax.load(workdir, weights=dtype)
    after = caption_jax.load(exported[dtype])
    expected = before.caption(IMAGES)
    assert after.caption(IMAGES) == expected  # bit for bit
    assert f"weights='{dtype}'" in repr(after) and f"weights='{dtype}'" in repr(before)
    float32 = caption_jax.load(workdir).caption(IMAGES)
    scores = [[caption.log_prob for caption in captions] for captions in (expected, float32)]
    assert scores[0] != scores[1]
    assert np.corrcoef(scores)[0, 1] > 0.97  # of a random model that amplifies rounding


def test_files_contain_small_tensors_and_say_so(exported):
    dtypes, sizes = {}, {}
    for dtype, folder in exported.items():
        assert json.loads((folder / "config.json").read_text())["weights"] == dtype
        sizes[dtype] = (folder / "model.safetensors").stat().st_size
        with safe_open(folder / "model.safetensors", "numpy") as file:
            dtypes[dtype] = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
        version = json.loads((folder / "manifest.json").read_text())["version"]
        assert version == (1 if dtype == "float32" else 2)
        card = (folder / "README.md").read_text()
        assert (f"with `--weights={dtype}`" in card) == (dtype != "float32")
    assert dtypes == {"float32": {"float32"}, "bfloat16": {"float32", "bfloat16"}, "int8": {"float32", "int8"}}
    assert sizes["int8"] < sizes["bfloat16"] < sizes["float32"]


def test_an_older_release_names_the_version(exported, monkeypatch):
    monkeypatch.setattr(artifact, "_FORMATS", artifact._FORMATS[:2])
    with pytest.raises(WorkdirError, match=r"manifest.json has format 'caption-jax export', version 2; this release"):
        read_model(exported["int8"])


def test_a_damaged_int8_file_is_rejected(exported, tmp_path):
    folder = shutil.copytree(exported["int8"], tmp_path / "copy")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(WorkdirError, match=r"model.safetensors is corrupted .*SHA-256"):
        caption_jax.load(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_exported_folder_is_exported_again_as_it_is_or_in_float32(exported, tmp_path, dtype):
    again = read_model(export_model(exported[dtype], "folder", tmp_path / "again"), dtype="stored")
    first = read_model(exported[dtype], dtype="stored")
    assert fingerprint(again.weights.variables) == fingerprint(first.weights.variables)
    full = read_model(export_model(exported[dtype], "folder", tmp_path / "full", weights="float32"), dtype="stored")
    assert find_stored_dtype(full.weights.variables) == "float32"
    assert fingerprint(full.weights.variables) == fingerprint(read_model(exported[dtype]).weights.variables)


def test_a_run_starts_from_the_dequantised_weights(workdir, exported):
    model = read_model(workdir)
    copied = transfer_weights(model.weights.variables, str(exported["int8"]), model.description.vocabulary)
    expected = read_model(exported["int8"]).weights.variables
    assert fingerprint(copied) == fingerprint(expected) != fingerprint(model.weights.variables)
    np.testing.assert_allclose(
        copied["params"]["decoder"]["embedding"], model.weights.variables["params"]["decoder"]["embedding"], atol=0.02
    )


def test_weights_in_buckets_are_read(exported, monkeypatch):
    for dtype, folder in exported.items():
        expected = fingerprint(read_model(folder, dtype="stored").weights.variables)
        with monkeypatch.context() as patch:
            patch.setattr("caption_jax.runs.weights.is_on_bucket", lambda path: True)
            variables = read_model(folder, dtype="stored").weights.variables
        assert fingerprint(variables) == expected and find_stored_dtype(variables) == dtype


@pytest.mark.slow
def test_commands_take_the_flag(workdir, tmp_path, capsys):
    out = tmp_path / "small"
    command = ("export", f"--workdir={workdir}", "--to=folder", "--weights=int8", f"--out={out}")
    assert run_main(*command) == 0
    assert json.loads((out / "config.json").read_text())["weights"] == "int8"
    photo = tmp_path / "photo.png"
    IMAGES[0].save(photo)
    capsys.readouterr()
    assert run_main("caption", f"--workdir={workdir}", "--weights=int8", str(photo)) == 0
    caption = capsys.readouterr().out
    assert run_main("caption", f"--workdir={out}", str(photo)) == 0
    assert capsys.readouterr().out == caption
    assert run_main("export", f"--workdir={workdir}", "--to=torch", "--weights=int8", reports_errors=True) == 1
    message = "error: --weights=int8 requires --to=folder: the weights of --to=torch are float32\n"
    assert capsys.readouterr().err == message


def test_the_choices_of_the_flag_are_those_of_load(workdir):
    assert WEIGHTS == CHOICES
    with pytest.raises(ConfigError, match=r"^unknown weights 'int4'; expected one of stored, "):
        caption_jax.load(workdir, weights="int4")
    with pytest.raises(ConfigError, match="unknown weights"):
        loading.load_model(workdir, dtype="")


@pytest.mark.parametrize("is_on_bucket", [False, True])
def test_a_file_with_an_unsupported_dtype_has_another_format(tmp_path, monkeypatch, is_on_bucket):
    header = json.dumps({"params/a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    monkeypatch.setattr(weights, "is_on_bucket", lambda file: is_on_bucket)
    with pytest.raises(SafetensorError, match="unsupported dtype F8_E4M3"):
        weights.read_safetensors(epath.Path(tmp_path / "model.safetensors"))
