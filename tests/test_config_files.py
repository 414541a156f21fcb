"""Configs of the package can be selected by name from any folder, and can import each other."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from small_run import ROOT

from caption_jax.cli.command_flags import remove_flag
from caption_jax.config_files import FOLDER, find_config, list_configs, load_config


def test_a_checkout_uses_the_configs_at_its_root():
    assert Path(FOLDER) == ROOT / "configs"
    module = importlib.import_module("caption_jax.configs.folder_search")
    assert Path(module.__file__) == ROOT / "configs" / "folder_search.py"
    assert module.get_config().objective.contrastive_weight > 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("coco", "coco.py"),
        ("coco.py", "coco.py"),
        ("configs/coco.py", "coco.py"),
        ("configs/workdir.py:gs://bucket/run", "workdir.py:gs://bucket/run"),
    ],
)
def test_configs_of_the_package_are_found_from_any_folder(value, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(value) == f"{FOLDER}/{expected}"


@pytest.mark.parametrize("value", ["", "nothing", "configs/nothing.py", "other/coco.py", "/configs/coco.py"])
def test_other_paths_are_unchanged(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(value) == value


def test_an_existing_file_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco.py").touch()
    assert find_config("coco.py:argument") == "coco.py:argument"


def test_a_flag_is_removed_with_its_value_after_an_equals_sign_or_a_space():
    others = ["--config.seed=1", "--workdir=w", "config"]
    for flag in (["--config=a"], ["-config", "a"], ["--config", "a"]):
        assert remove_flag(["x", *flag, *others], "config") == ["x", *others]
    assert remove_flag(["--config"], "config") == []
    assert remove_flag(["--", "--config=a"], "config") == ["--", "--config=a"]


def test_each_config_has_a_description_and_can_be_loaded_by_name():
    configs = list_configs()
    assert set(configs) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert all(len(description.splitlines()[0]) > 20 for description in configs.values())
    assert load_config("shapes").data.source == "shapes"


def test_a_config_file_may_have_an_argument_and_define_dataclasses(tmp_path):
    lines = [
        "from __future__ import annotations",
        "import dataclasses",
        "from caption_jax.config import default_config",
        "@dataclasses.dataclass",
        "class Settings:",
        "    seed: int = 3",
        "def get_config(argument='none'):",
        "    config = default_config()",
        "    config.seed = Settings().seed + len(argument)",
        "    return config",
    ]
    (tmp_path / "custom.py").write_text("\n".join(lines))
    assert load_config(f"{tmp_path / 'custom.py'}").seed == 3 + len("none")
    assert load_config(f"{tmp_path / 'custom.py'}:a:b").seed == 3 + len("a:b")
    assert not (tmp_path / "__pycache__").exists()
