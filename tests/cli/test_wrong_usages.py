"""Each wrong usage prints one line on stderr that contains the remedy, and exits with the documented status."""

from __future__ import annotations

import os
import shutil

import pytest
from small_run import box_image, run_main
from wrong_usages import BROKEN_CONFIGS, WRONG_USAGES, read_error


@pytest.fixture(scope="module")
def paths(small_workdir, searchable_workdir, distinct_images, tmp_path_factory) -> dict[str, str]:
    """The paths in the arguments of `WRONG_USAGES`."""
    folder = tmp_path_factory.mktemp("usages")
    for name in ("configs", "damaged", "empty", "here"):
        (folder / name).mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    for name, content in BROKEN_CONFIGS.items():
        (folder / "configs" / name).write_text(content)
    (folder / "file").write_text("not a folder")
    box_image("red").save(folder / "here" / "photo.png")
    indexed = shutil.copytree(searchable_workdir, folder / "indexed")
    image = distinct_images / "images" / "00.png"
    assert run_main("--mode=index", f"--workdir={indexed}", "--captions=none", image) == 0
    workdirs = {"workdir": small_workdir, "searchable": searchable_workdir, "indexed": indexed}
    others = {name: folder / name for name in ("configs", "damaged", "empty", "file", "here")}
    return {name: str(path) for name, path in {**workdirs, **others}.items()}


@pytest.mark.parametrize(("command_line", "status", "message"), WRONG_USAGES, ids=[case[0] for case in WRONG_USAGES])
def test_wrong_usages_print_one_line(command_line, status, message, paths, monkeypatch, capfd):
    monkeypatch.chdir(paths["here"])
    arguments = [argument.format(**paths) for argument in command_line.split()]
    assert run_main(*arguments, reports_errors=True) == status
    output = capfd.readouterr()
    line = read_error(output.err)
    assert line.startswith("error: ") and message.format(**paths) in line
    assert not output.out.startswith("Traceback")
    assert os.listdir(paths["here"]) == ["photo.png"] and not os.listdir(paths["empty"])
