"""Exported folders caption as their workdir does, have a valid model card, and are never half written."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import small_run
from etils import epath
from small_run import run_main
from varied_models import STEP, write_varied_model

import caption_jax
from caption_jax.cli.command_flags import EXPORT_FORMATS
from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.export.exporter import WRITERS, export_model
from caption_jax.runs.exported_folder import remove_folders
from caption_jax.runs.loading import read_model
from caption_jax.runs.weights import fingerprint
from caption_jax.specs import RunSpec
from input_pipeline.files import new_folder

SPLITS = {"train": {"images": 8, "captions": 1600}, "val": {"images": 2, "captions": 4}}
PROTOCOL = {"images": 2, "captions": 4, "image_input": "real", "tokenization": "PTB", "decode": {"method": "greedy"}}


def write_evaluation(workdir: Path, split: str, step: int = STEP, **protocol) -> None:
    metrics, intervals = {"CIDEr-D": 0.7312, "loss": 2.5}, {"CIDEr-D": [0.61, 0.8423]}
    content = {"split": split, "step": step, "metrics": metrics, "intervals": intervals}
    content["protocol"] = {**PROTOCOL, "split": split, "step": step, **protocol}
    (workdir / f"eval_{split}_{len(protocol)}_{step}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "boxes"
    write_varied_model(folder)
    (folder / "sessions.json").write_text(json.dumps([{"splits": {}}, {"splits": SPLITS}]))
    write_evaluation(folder, "test")
    write_evaluation(folder, "val", step=STEP + 1)
    write_evaluation(folder, "train", image_input="blank")
    shutil.copy(next(folder.glob("model-*")) / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory) -> Path:
    return Path(export_model(workdir, "folder", tmp_path_factory.mktemp("shared") / "boxes"))


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_captions_and_log_probabilities_are_those_of_the_workdir(workdir, exported):
    images = [small_run.box_image(colour, side) for colour in small_run.COLOURS for side in small_run.SIDES]
    expected = caption_jax.load(workdir).caption(images)
    assert caption_jax.load(exported).caption(images) == expected  # bit for bit
    assert len({caption.log_prob for caption in expected}) > 1
    weights = [read_model(folder).weights for folder in (workdir, exported)]
    assert weights[0].step == weights[1].step == STEP
    assert fingerprint(weights[0].variables) == fingerprint(weights[1].variables)


def test_the_command_writes_to_the_workdir_and_stores_decoding_overrides(workdir, exported, capsys):
    assert run_main("export", f"--workdir={workdir}", "--to=folder", "--config.decode.max_length=4") == 0
    folder = workdir / "export" / "folder"
    assert capsys.readouterr().out == f"{folder}\n"
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}
    image = small_run.box_image()
    tokens = [caption_jax.load(source).caption(image).tokens for source in (folder, exported)]
    assert len(tokens[0]) <= 3 < len(tokens[1])
    assert run_main("export", f"--workdir={workdir}", "--to=folder", reports_errors=True) == 1
    assert re.fullmatch(rf"error: {folder} already exists: delete it, .*\n", capsys.readouterr().err)


def test_an_exported_folder_can_be_exported_again(exported, tmp_path):
    again = Path(export_model(exported, "folder", tmp_path / "again"))
    for path in exported.rglob("*"):
        if path.is_file() and path.name != "README.md":  # whose title is the name of the source
            assert (again / path.relative_to(exported)).read_bytes() == path.read_bytes()


def test_the_front_matter_of_the_card_is_read_by_the_hub(exported):
    card = huggingface_hub.ModelCard.load(exported / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("caption-jax", "image-to-text")
    assert card.data.license == "other" and "chosen" in card.data.license_name
    results = [(result.dataset_split, result.metric_type, result.metric_value) for result in card.data.eval_results]
    assert results == [("test", "CIDEr-D", 0.7312), ("test", "loss", 2.5)]


def test_the_card_has_the_data_the_scores_with_intervals_and_the_protocol(exported):
    text = (exported / "README.md").read_text()
    assert "| train | 8 | 1,600 |\n| val | 2 | 4 |" in text
    assert "| CIDEr-D | 0.7312 | 0.6100 to 0.8423 |\n| loss | 2.5000 |  |" in text
    assert f"Protocol: 2 images with 4 captions; step {STEP}; tokenization PTB; decoding greedy max_length=40." in text
    assert "### val" not in text and "### train" not in text  # other weights, and blank images
    for title in ("Use", "Purpose", "Training data", "Limits", "Licence"):
        assert f"\n## {title}\n" in text


def test_the_card_states_what_is_not_recorded(tmp_path):
    write_varied_model(tmp_path / "boxes")
    text = Path(export_model(tmp_path / "boxes", "folder", tmp_path / "out"), "README.md").read_text()
    assert "are not recorded" in text and "No scores of these weights are recorded" in text
    assert huggingface_hub.ModelCard(text).data.eval_results is None


def test_config_json_describes_the_model(exported):
    config = json.loads((exported / "config.json").read_text())
    assert config["model_settings"]["backbone"] == {"padding": "symmetric", "norm_epsilon": 1e-5}
    assert config["vocabulary"]["size"] == config["model_settings"]["vocabulary_size"]
    assert config["spec"]["decode"]["method"] == "greedy" and config["spec"]["model"]["encoder"]["variant"] == "micro"


def test_absolute_paths_are_not_shared():
    spec = {
        "init_from": "gs://bucket/runs/first",
        "data": {"root": "/home/me/photographs/", "tokenizer": "roberta-base", "captions": ["C:\\data\\a.csv"]},
        "model": {"encoder": {"weights": "~/weights/b0.pth", "drop_path": 0.1}},
        "decode": {"prefix": "/ a"},
    }
    assert remove_folders(spec) == {
        "init_from": "first",
        "data": {"root": "photographs", "tokenizer": "roberta-base", "captions": ["a.csv"]},
        "model": {"encoder": {"weights": "b0.pth", "drop_path": 0.1}},
        "decode": {"prefix": "/ a"},
    }


@pytest.mark.parametrize("name", ["config.json", "preprocessing.json", "model.safetensors", "tokenizer/vocab.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_named_with_a_remedy(copy, name, damage):
    path = copy / name
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    error = MissingFileError if damage == "missing" else WorkdirError
    with pytest.raises(error, match=rf"{path} is (missing|corrupted).*: restore .* or export the run again") as caught:
        caption_jax.load(copy)
    assert "\n" not in str(caught.value)


def test_the_card_may_be_edited(copy):
    (copy / "README.md").write_text("license: mit")
    assert read_model(copy).weights.step == STEP


def test_an_incomplete_folder_is_rejected(copy):
    (copy / "manifest.json").unlink()
    with pytest.raises(MissingFileError, match=rf"{copy}/manifest.json is missing: .* export --to=folder"):
        caption_jax.load(copy)


def test_a_folder_of_another_library_is_rejected(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"architectures": ["BlipModel"], "model_type": "blip"}')
    with pytest.raises(WorkdirError, match=r"config.json is not the config of a caption-jax run: .* export"):
        caption_jax.load(tmp_path)
    assert run_main("caption", f"--workdir={tmp_path}", "photo.png", reports_errors=True) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MissingFileError, match=r"manifest.json is missing: .* was not written by caption-jax"):
        caption_jax.load(tmp_path)


def test_a_folder_appears_only_when_it_is_complete(workdir, tmp_path, monkeypatch):
    def fail(folder, *_):
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "out").exists()
        raise OSError("disk full")

    monkeypatch.setattr("caption_jax.export.exporter.WRITERS", {"folder": fail})
    with pytest.raises(OSError, match="disk full"):
        export_model(workdir, "folder", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_exports_are_deleted_after_an_hour(workdir, tmp_path):
    names = ["out", "out", "other", "[o]ut"]
    folders = [tmp_path / f".{name}.{number:032x}.part" for number, name in enumerate(names)]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    for folder in (folders[0], *folders[2:]):
        os.utime(folder, (time.time() - 3601,) * 2)
    export_model(workdir, "folder", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == sorted([*folders[1:], tmp_path / "out"])


def test_a_folder_in_a_bucket(workdir, bucket):
    folder = export_model(workdir, "folder", f"{bucket}/shared/boxes")
    assert read_model(folder).weights.step == STEP
    with pytest.raises(ConfigError, match="gs://bucket/shared/boxes already exists"), new_folder(epath.Path(folder)):
        pass


def test_ensembles_are_rejected(workdir, tmp_path):
    spec = small_run.get_config()
    with spec.unlocked():
        spec.decode.ensemble = (str(workdir),)
    with pytest.raises(ConfigError, match=r"config.decode.ensemble=.* export uses a single model: remove the key"):
        export_model(workdir, "folder", tmp_path / "out", spec=RunSpec.from_config(spec))
    assert not list(tmp_path.iterdir())


def test_all_formats_are_values_of_the_flag():
    assert tuple(WRITERS) == EXPORT_FORMATS
