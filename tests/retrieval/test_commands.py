"""The modes `index` and `search` of `main.py` with a trained model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile_images import make_png
from small_run import box_image, run_main

import caption_jax
from caption_jax.retrieval.index import ImageIndex


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with four images, one per colour, and an unreadable file."""
    folder = tmp_path_factory.mktemp("images")
    for colour, side in (("red", "left"), ("green", "right"), ("blue", "left"), ("yellow", "right")):
        box_image(colour, side).save(folder / f"{colour}.png")
    (folder / "broken.jpg").write_bytes(make_png(1, 20_000_000, "L"))  # resizing it would take 27 GB
    return folder


@pytest.fixture(scope="module")
def index(searchable_workdir, images, tmp_path_factory) -> Path:
    """The folder of an index of the images."""
    folder = tmp_path_factory.mktemp("index")
    assert run_main("--mode=index", f"--workdir={searchable_workdir}", f"--index={folder}", images) == 1
    return folder


def search(workdir: Path, folder: Path, *arguments: str | Path, capsys) -> list[list[str]]:
    """Returns the tab-separated fields of each line of output."""
    capsys.readouterr()
    assert run_main("--mode=search", f"--workdir={workdir}", f"--index={folder}", *arguments) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_text_queries_rank_the_described_image_first(searchable_workdir, images, index, capsys):
    for colour, side in (("red", "left"), ("green", "right"), ("blue", "left"), ("yellow", "right")):
        results = search(searchable_workdir, index, f"--query=a {colour} box on the {side}.", capsys=capsys)
        assert [rank for rank, *_ in results] == ["1", "2", "3", "4"]
        assert results[0][2] == str(images / f"{colour}.png")
        assert "box" in results[0][3]
        scores = [float(score) for _, score, *_ in results]
        assert scores == sorted(scores, reverse=True) and 1 >= scores[0] > scores[1]


def test_image_queries_print_results_as_json_lines(searchable_workdir, images, index, capsys):
    query = f"--query={images / 'blue.png'}"
    results = search(searchable_workdir, index, query, "--top=2", "--format=jsonl", capsys=capsys)
    first, second = (json.loads(line) for (line,) in results)
    assert (first["rank"], first["path"]) == (1, str(images / "blue.png"))
    assert first["score"] == pytest.approx(1, abs=1e-5) and second["score"] < 0.999
    assert set(first) == {"rank", "score", "path", "id", "caption"}


def test_indexed_vectors_and_captions_match_the_captioner(searchable_workdir, images, index):
    captioner, stored = caption_jax.load(str(searchable_workdir)), ImageIndex(index)
    paths = [entry.path for entry in stored.entries()]
    assert [Path(path).stem for path in paths] == ["blue", "green", "red", "yellow"]
    np.testing.assert_allclose(captioner.embed_images(paths), stored.vectors, atol=1e-5)
    captions = [caption.text for caption in captioner.caption(paths)]
    assert [entry.caption for entry in stored.entries()] == captions


def test_updates_add_new_images_and_report_broken_and_missing_files(
    searchable_workdir, images, index, tmp_path, capsys
):
    shutil.copytree(images, tmp_path / "images")
    arguments = ["--mode=index", f"--workdir={searchable_workdir}", f"--index={tmp_path / 'index'}", "--captions=none"]
    assert run_main(*arguments, tmp_path / "images" / "red.png") == 0
    assert run_main(*arguments, tmp_path / "images") == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[1] == f"{tmp_path / 'index'}: 4 images (3 added, 0 updated, 1 unchanged)"
    assert (
        f"error: {tmp_path / 'images' / 'broken.jpg'}: declares 1 x 20,000,000 pixels; the maximum side is"
        in output.err
    )
    (tmp_path / "images" / "red.png").unlink()
    assert run_main(*arguments, "--missing=drop", tmp_path / "images" / "blue.png") == 0
    assert "missing files: 1 image (dropped): " in capsys.readouterr().err
    results = search(searchable_workdir, tmp_path / "index", "--query=a red box", capsys=capsys)
    assert {Path(path).stem for _, _, path, _ in results} == {"green", "blue", "yellow"}
    assert {caption for *_, caption in results} == {""}


def test_a_split_is_indexed_in_the_workdir_by_default(searchable_workdir, distinct_images, capsys):
    assert run_main("--mode=index", f"--workdir={searchable_workdir}", "--split=test", "--captions=none") == 0
    results = search(searchable_workdir, searchable_workdir / "index", "--query=box", capsys=capsys)
    assert {path for _, _, path, _ in results} == {str(distinct_images / "images" / f"{n}.png") for n in (10, 11)}
    assert {entry.id for entry in ImageIndex(searchable_workdir / "index").entries()} == {"10.png", "11.png"}


def test_an_index_of_a_different_checkpoint_is_rejected(searchable_workdir, images, index, tmp_path):
    shutil.copytree(index, tmp_path / "index")
    header = json.loads((index / "index.json").read_text())
    header["model"] = {"step": 31, "weights": "cd" * 32}
    (tmp_path / "index" / "index.json").write_text(json.dumps(header))
    flags = [f"--workdir={searchable_workdir}", f"--index={tmp_path / 'index'}"]
    for arguments in (["--mode=search", "--query=box"], ["--mode=index", images]):
        with pytest.raises(ValueError, match=r"\(step 31, weights cdcdcdcdcdcd\) other than .* \(step \d+, weights "):
            run_main(*flags, *arguments)


def test_invalid_queries_and_arguments_are_rejected(searchable_workdir, images, index, capsys):
    flags = [f"--workdir={searchable_workdir}", f"--index={index}"]
    assert run_main("--mode=search", *flags, "--query=missing.jpg") == 1
    assert "error: missing.jpg: no such file" in capsys.readouterr().err
    assert run_main("--mode=search", *flags, f"--query={images / 'broken.jpg'}") == 1
    assert "broken.jpg: declares 1 x 20,000,000 pixels" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no images match \['missing\*'\]"):
        run_main("--mode=index", *flags, "missing*")
    with pytest.raises(ValueError, match=r"no images match .* folders with JPEG"):
        run_main("--mode=index", *flags, index)
    assert run_main("--mode=index", *flags) == 2
    assert "index requires image files" in capsys.readouterr().err
    assert run_main("--mode=index", *flags, "--split=test", "a.jpg") == 2
    assert "index takes either files or --split" in capsys.readouterr().err
    for query_flags in ([], ["--query="], ["--query= "]):
        assert run_main("--mode=search", *flags, *query_flags) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: search requires --query")
    with pytest.raises(FileNotFoundError, match="there is no index in"):
        run_main("--mode=search", flags[0], f"--index={index / 'other'}", "--query=box")
    with pytest.raises(FileNotFoundError, match=re.escape(str(index / "no_run"))):
        run_main("--mode=search", f"--workdir={index / 'no_run'}", f"--index={index / 'other'}", "--query=box")


def test_unknown_words_in_a_query_are_reported(searchable_workdir, index, capsys):
    flags = [f"--workdir={searchable_workdir}", f"--index={index}"]
    for query, has_unknown_word in (("red box", False), ("red 狗", True)):
        assert run_main("--mode=search", *flags, f"--query={query}") == 0
        output = capsys.readouterr()
        assert len(output.out.splitlines()) == 4
        message = f"'{query}' contains words that do not occur in the training captions: 狗\n"
        assert (message in output.err) == has_unknown_word


def test_a_model_without_a_joint_embedding_is_rejected(small_workdir, small_images, tmp_path):
    with pytest.raises(ValueError, match="trained without a joint embedding of images and texts"):
        run_main("--mode=index", f"--workdir={small_workdir}", f"--index={tmp_path / 'index'}", small_images / "images")
    assert not (tmp_path / "index").exists()
