"""Configs of the package can be selected by name from any folder, and can import each other."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from small_run import ROOT

from caption_jax.cli.command_flags import replace_flag
from caption_jax.config_files import FOLDER, find_config


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


def test_a_flag_value_is_replaced_after_an_equals_sign_or_a_space():
    overrides = ["--config.seed=1", "--workdir=w", "config"]
    assert replace_flag(["main.py", "--config=a", *overrides], "config", "b") == ["main.py", "--config=b", *overrides]
    assert replace_flag(["main.py", "-config", "a", *overrides], "config", "b") == [
        "main.py",
        "-config",
        "b",
        *overrides,
    ]
    assert replace_flag(["main.py", "--config"], "config", "b") == ["main.py", "--config"]
