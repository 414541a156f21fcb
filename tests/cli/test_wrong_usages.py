"""Each wrong usage prints one line on stderr that contains the remedy, and exits with the documented status."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_run import box_image, run_main
from wrong_usages import BROKEN_CONFIGS, WRONG_USAGES, read_error

from caption_jax.bulk.bulk_run import identify_model
from caption_jax.retrieval.index import open_for_writing
from caption_jax.retrieval.index_format import Entry


@pytest.fixture(scope="module")
def paths(small_workdir, searchable_workdir, tmp_path_factory) -> dict[str, str]:
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
    write_index(indexed)
    workdirs = {"workdir": small_workdir, "searchable": searchable_workdir, "indexed": indexed}
    others = {name: folder / name for name in ("configs", "damaged", "empty", "file", "here")}
    return {name: str(path) for name, path in {**workdirs, **others}.items()}


def write_index(workdir: Path) -> None:
    """Writes an index of one image to a workdir, without a model, whose programs take seconds to compile."""
    model = identify_model(str(workdir), "best", embeds=True)
    with open_for_writing(workdir / "index", 16, model) as index:
        index.append(np.eye(1, 16, dtype=np.float32), [Entry("00", "/00.png")])


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
