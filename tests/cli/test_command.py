"""The installed command, its help, its flags and dry runs."""

from __future__ import annotations

import ast
import math
import re
import tomllib

import pytest
from small_run import ROOT, run_main

from caption_jax.cli import command_flags
from caption_jax.cli.subcommands import MODES, SUBCOMMANDS

CONFIG = ROOT / "tests" / "small_run.py"


@pytest.fixture
def installed_command(tmp_path):
    """The script that pip writes for the entry point in pyproject.toml."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["caption-jax"]
    module, function = entry.split(":")
    script = tmp_path / "bin" / "caption-jax"
    script.parent.mkdir()
    script.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return script


def test_the_installed_command_has_the_same_output_as_main_py(installed_command, small_workdir, small_images, capsys):
    arguments = ["--mode=caption", f"--workdir={small_workdir}", small_images / "images" / "00.png"]
    assert run_main(*arguments, script=installed_command) == 0
    output = capsys.readouterr().out
    assert "box" in output
    assert run_main(*arguments) == 0
    assert capsys.readouterr().out == output


def test_helpfull_of_both_commands_lists_each_flag_once(installed_command, capsys):
    for script in (ROOT / "main.py", installed_command):
        assert run_main("--helpfull", script=script) == 0
        output = capsys.readouterr().out
        for name in ("config", "workdir", "split", "dry_run", "compilations"):
            assert len(re.findall(rf"^  --{name}[= ]", output, flags=re.MULTILINE)) == 1
        assert "--[no]alsologtostderr" in output


def test_each_subcommand_has_a_module_and_each_mode_an_example():
    usage = ast.get_docstring(ast.parse((ROOT / "main.py").read_text()))
    for name in SUBCOMMANDS:
        assert (ROOT / "caption_jax" / "cli" / f"{name.replace('-', '_')}.py").is_file()
    for mode in MODES:
        assert f"--mode={mode} " in usage or mode == "train"  # the default mode


def test_flags_are_parsed_with_and_without_an_equals_sign():
    values = command_flags.read_flags(["main.py", "--mode", "evaluate", "--workdir=a=b", "x.jpg"])
    assert values == {"mode": "evaluate", "workdir": "a=b"}


def test_a_dry_run_prints_the_config_and_a_loss_and_writes_nothing(tmp_path, small_images, capsys):
    workdir = tmp_path / "run"
    overrides = [f"--config.data.root={small_images}", "--config.train.steps=0", "--config.train.epochs=3"]
    assert run_main(f"--config={CONFIG}", f"--workdir={workdir}", *overrides, "--dry_run") == 0
    output = capsys.readouterr().out
    assert "config.train.steps = 6\n" in output and 'config.data.source = "folder"\n' in output
    assert "images: train 8, val 2, test 2" in output and "captions: train 16, val 4, test 4" in output
    assert re.search(r"the first training image is \S+\.png: '\w", output)
    loss = float(re.search(r"step 1: loss (\d+\.\d+)", output)[1])
    vocabulary_size = int(re.search(r"vocabulary of (\d+) tokens", output)[1])
    assert loss == pytest.approx(math.log(vocabulary_size), rel=0.5)  # the model is untrained
    assert not workdir.exists()


@pytest.mark.slow
def test_a_dry_run_of_an_existing_run_changes_nothing(small_workdir, small_images, capsys):
    def read_modification_times():
        return {path: path.stat().st_mtime_ns for path in small_workdir.rglob("*")}

    before = read_modification_times()
    arguments = [f"--config={CONFIG}", f"--workdir={small_workdir}", f"--config.data.root={small_images}"]
    assert run_main(*arguments, "--dry_run") == 0
    assert "training resumes it" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"cannot be resumed with these changes:\n  seed: 0 -> 1"):
        run_main(*arguments, "--config.seed=1", "--dry_run")
    assert read_modification_times() == before


def test_dry_runs_require_train_mode(small_workdir, capsys):
    assert run_main("--mode=evaluate", f"--workdir={small_workdir}", "--dry_run") == 2
    assert "--dry_run" in capsys.readouterr().err
