"""Subcommands run the same code as `--mode`."""

from __future__ import annotations

import json
import re

import pytest
from small_run import ROOT, run_main

from caption_jax.config_files import list_configs

CONFIG = ROOT / "tests" / "small_run.py"


def read_output(capsys, *arguments) -> str:
    """Runs a command that succeeds, and returns its standard output."""
    capsys.readouterr()
    assert run_main(*arguments) == 0
    return capsys.readouterr().out


def test_caption_accepts_flags_before_and_after_the_images(small_workdir, small_images, capsys):
    image, workdir = small_images / "images" / "00.png", f"--workdir={small_workdir}"
    expected = read_output(capsys, "--mode=caption", workdir, image)
    assert "box" in expected
    assert read_output(capsys, "caption", workdir, image) == expected
    assert read_output(capsys, "caption", image, "--workdir", small_workdir) == expected
    assert read_output(capsys, "caption", workdir, "--", image) == expected
    line = json.loads(read_output(capsys, "caption", workdir, image, "--format=jsonl", "--config.decode.max_length=4"))
    assert len(line["tokens"]) <= 3


def test_a_query_needs_neither_a_flag_nor_quotes(small_workdir, monkeypatch):
    """The searches themselves are those of tests/retrieval/test_commands.py."""
    searches = []

    def search_images(workdir, folder, query, *, top, **options) -> int:
        searches.append((query, top))
        return 0

    monkeypatch.setattr("caption_jax.cli.search.search_images", search_images)
    for arguments in (["--query=a red box", "--top=3"], ["a red box", "--top=3"], ["--top=3", "a", "red", "box"]):
        assert run_main("search", f"--workdir={small_workdir}", *arguments) == 0
    assert searches == 3 * [("a red box", 3)]


@pytest.mark.slow
def test_the_default_workdir_is_named_after_the_config(small_images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output = read_output(
        capsys, "train", f"--config={CONFIG}", f"--config.data.root={small_images}", "--config.train.steps=2"
    )
    assert output.startswith("workdir: runs/small_run (set --workdir to use another)\n")
    assert (tmp_path / "runs" / "small_run" / "config.json").is_file()
    data = ["--config.data.root=other", "--config.train.steps=2"]
    with pytest.raises(ValueError, match=r"runs/small_run holds a run with config.data.root='.*', not 'other'"):
        run_main("train", f"--config={CONFIG}", *data)
    assert run_main("index", "photo.png") == 2
    assert "the folder of a run, such as runs/small_run (" in capsys.readouterr().err


def test_score_takes_the_references_first(tmp_path, capsys):
    references, results = tmp_path / "references.csv", tmp_path / "results.json"
    references.write_text("image,caption\na.jpg,a dog runs\na.jpg,the dog is running\nb.jpg,two cats sit on a mat\n")
    results.write_text(
        json.dumps([{"image_id": "a.jpg", "caption": "a dog runs"}, {"image_id": "b.jpg", "caption": "cats"}])
    )
    output = read_output(capsys, "score", references, results, "--no-java", "--samples=10")
    assert "2 images" in output and re.search(r"BLEU-1 +0\.\d+", output)


def test_configs_are_listed_and_described(capsys):
    output = read_output(capsys, "configs")
    for name, description in list_configs().items():
        assert re.search(rf"^{name} +{re.escape(description.splitlines()[0])}$", output, flags=re.MULTILINE)
    output = read_output(capsys, "configs", "folder")
    assert output.splitlines()[0] == str(ROOT / "configs" / "folder.py") and "captions.csv" in output
