"""Runs with an objective, an evaluator or a backbone that can no longer be imported."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
from small_run import ROOT, box_image, run_main

import caption_jax
from caption_jax.config import to_config_dict
from caption_jax.errors import ConfigError
from caption_jax.runs.artifact import POINTER
from caption_jax.runs.experiment import open_experiment
from caption_jax.runs.workdir import read_spec
from caption_jax.specs import RunSpec, as_mapping
from caption_jax.training.loop import train_and_evaluate

ERROR = (
    r"config\.(objective\.terms\.rare|evaluators\.custom)\.name=missing_module:\w+: No module named 'missing_module'"
)
TERM = {"name": "missing_module:Rare", "weight": 0.5, "words": ["a", "the"]}


@pytest.fixture(scope="module")
def workdir(searchable_workdir, tmp_path_factory):
    """The workdir of a run with a text encoder, an unavailable objective and an unavailable evaluator."""
    workdir = tmp_path_factory.mktemp("unavailable") / "run"
    shutil.copytree(searchable_workdir, workdir)
    # Without a pointer to the model folder, whose checksum would not match the edited config, checkpoints are loaded.
    (workdir / POINTER).unlink()
    stored = json.loads((workdir / "config.json").read_text())
    stored["spec"]["objective"]["terms"] = {"rare": TERM}
    stored["spec"]["evaluators"] = {"custom": {"name": "missing_module:Score"}}
    (workdir / "config.json").write_text(json.dumps(stored))
    return workdir


@pytest.fixture
def image(tmp_path):
    box_image("red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_captioning_works(workdir, image, capsys):
    assert run_main("--mode=caption", f"--workdir={workdir}", image) == 0
    assert "box" in capsys.readouterr().out


def test_captioning_does_not_import_objectives_and_evaluators(workdir, image, tmp_path, monkeypatch, capsys):
    """A model from a stranger may name any module that can be imported, also one in the current folder."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(workdir, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["spec"]["objective"]["terms"] = {"rare": {"name": "stranger:Term"}}
    stored["spec"]["evaluators"] = {"custom": {"name": "stranger:Score"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    index = f"--index={tmp_path / 'index'}"
    assert run_main("--mode=caption", f"--workdir={tmp_path / 'run'}", image) == 0
    assert run_main("--mode=index", f"--workdir={tmp_path / 'run'}", index, image) == 0
    assert run_main("--mode=search", f"--workdir={tmp_path / 'run'}", index, "--query=a red box") == 0
    caption_jax.load(str(tmp_path / "run")).caption([image])
    assert not (tmp_path / "imported").exists()
    with pytest.raises(ConfigError, match="module stranger has no attribute"):
        run_main("--mode=evaluate", f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "imported").exists()


def test_the_module_of_a_backbone_is_named_before_it_is_imported(tmp_path, monkeypatch, caplog):
    (tmp_path / "strange_backbone.py").write_text("raise RuntimeError('first line\\nsecond line')")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ConfigError, match=r"importing strange_backbone raised RuntimeError: first line$"),
    ):
        RunSpec.from_config({"model": {"encoder": {"name": "strange_backbone:Network"}}})
    assert "importing the module strange_backbone, which config.model.encoder.name selects" in caplog.text


def test_index_search_and_neighbours_work(workdir, image, tmp_path, capsys):
    index = f"--index={tmp_path / 'index'}"
    assert run_main("--mode=index", f"--workdir={workdir}", index, image) == 0
    assert run_main("--mode=index", f"--workdir={workdir}", index, "--split=train") == 0
    capsys.readouterr()
    assert run_main("--mode=search", f"--workdir={workdir}", index, "--query=a red box", "--top=2") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run_main("--mode=neighbours", f"--workdir={workdir}", index, "--split=val") == 0


@pytest.mark.parametrize("mode", ["evaluate", "tune", "plan"])
def test_modes_that_use_the_extension_reject_the_run(workdir, mode):
    with pytest.raises(ConfigError, match=ERROR):
        run_main(f"--mode={mode}", f"--workdir={workdir}", "--topology=cpu:1")


def test_the_command_reports_the_missing_module_in_one_line(workdir):
    command = [sys.executable, "main.py", "--mode=evaluate", f"--workdir={workdir}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = process.stderr.splitlines()
    assert process.returncode == 1 and re.match(f"error: {ERROR}", line)


def test_functions_that_use_the_extension_reject_the_spec(workdir):
    spec = read_spec(workdir)
    with pytest.raises(
        ConfigError, match=rf"{ERROR}: training and evaluation require it; restore the module or remove the key"
    ):
        open_experiment(workdir, spec)
    with pytest.raises(ConfigError, match=ERROR):
        train_and_evaluate(spec, workdir)


def test_the_config_of_the_extension_is_preserved(workdir):
    spec = read_spec(workdir)
    stored = json.loads(json.dumps(as_mapping(spec)))
    assert stored["objective"]["terms"] == {"rare": TERM}
    assert RunSpec.from_config(to_config_dict(spec), "defer") == RunSpec.from_config(stored, "defer") == spec


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from json import no_such_name", "cannot import name 'no_such_name'"),
        ("", "has no attribute 'Broken'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("class Broken: pass", "not a frozen dataclass"),
    ],
)
def test_import_errors_are_reported_when_the_module_is_needed(tmp_path, monkeypatch, source, reason):
    (tmp_path / "broken_extension.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_extension", raising=False)
    values = {"evaluators": {"custom": {"name": "broken_extension:Broken"}}}
    spec = RunSpec.from_config(values, "defer")
    with pytest.raises(ConfigError) as error:
        spec.import_extensions()
    message = str(error.value)
    assert message.startswith("config.evaluators.custom.name=broken_extension:Broken") and reason in message


def test_captioning_requires_the_backbone(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["spec"]["model"]["encoder"] = {"name": "missing_module:Network"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"config\.model\.encoder\.name=missing_module:Network: No module"):
        caption_jax.load(str(tmp_path / "run"))
