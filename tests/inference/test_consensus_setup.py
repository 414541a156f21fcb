"""`config.decode.consensus_weight` in evaluate and caption, and the stored document frequencies."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from etils import epath
from random_model import write_random_model
from safetensors.numpy import load, save
from small_run import box_image, run_main

import caption_jax
from caption_jax.errors import ConfigError, MissingFileError, WorkdirError
from caption_jax.inference.consensus_setup import FILE_NAME, read_frequencies

BEAM = ["--config.decode.method=beam", "--config.decode.num_beams=4"]
CONSENSUS = [*BEAM, "--config.decode.consensus_weight=5"]


@pytest.mark.slow
def test_evaluate_stores_the_frequencies_that_caption_reads(small_workdir, small_images, tmp_path, capsys):
    workdir = shutil.copytree(small_workdir, tmp_path / "run")
    image = small_images / "images" / "00.png"
    with pytest.raises(
        MissingFileError, match=r"evaluate and tune store.*set --config.decode.consensus_metric=ROUGE-L"
    ):
        run_main("caption", f"--workdir={workdir}", *CONSENSUS, image)
    assert run_main("evaluate", f"--workdir={workdir}", "--split=train", *CONSENSUS) == 0
    evaluation = json.loads((workdir / "eval_train.json").read_text())
    assert evaluation["protocol"]["decode"]["consensus_weight"] == 5
    stored = (workdir / FILE_NAME).read_bytes()
    arrays = load(stored)
    # 8 images, all of which have the word "box"
    assert arrays["default_weight"] == pytest.approx(np.log(8)) and arrays["weights"].min() == pytest.approx(
        0, abs=1e-6
    )
    assert len(arrays["references"]) == 32 and arrays["seed"] == 0
    capsys.readouterr()
    assert run_main("caption", f"--workdir={workdir}", *CONSENSUS, image, "--format=jsonl") == 0
    caption = json.loads(capsys.readouterr().out)["caption"]
    by_id = {row["image_id"]: row["caption"] for row in evaluation["images"]}
    assert caption == by_id["00.png"]
    assert run_main("evaluate", f"--workdir={workdir}", "--split=val", *CONSENSUS) == 0
    assert (workdir / FILE_NAME).read_bytes() == stored  # those of the training captions, not of the split


@pytest.mark.parametrize("metric", [pytest.param("BLEU-4", marks=pytest.mark.slow), "ROUGE-L"])
def test_other_metrics_need_no_frequencies(metric, tmp_path):
    write_random_model(tmp_path / "model", seed=1)
    settings = {"method": "sample", "num_samples": 8, "max_length": 6, "consensus_metric": metric}
    images = [box_image(colour) for colour in ("red", "green", "blue", "yellow")]
    plain = caption_jax.load(tmp_path / "model", decode_config=settings).caption(images)
    ranked = caption_jax.load(tmp_path / "model", decode_config=settings | {"consensus_weight": 1e4}).caption(images)
    assert len(plain) == len(ranked) == 4 and plain != ranked
    assert not (tmp_path / "model" / FILE_NAME).exists()


@pytest.mark.slow
def test_an_ensemble_is_ranked_by_consensus(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_random_model(tmp_path / name, seed=seed)
    settings = {"method": "beam", "num_beams": 3, "max_length": 6, "consensus_weight": 3.0}
    settings |= {"consensus_metric": "ROUGE-L", "ensemble": (str(tmp_path / "b"),)}
    assert len(caption_jax.load(tmp_path / "a", decode_config=settings).caption([box_image()])) == 1


def test_damaged_frequencies_are_reported(tmp_path):
    path = epath.Path(tmp_path / FILE_NAME)
    arrays = {
        "seed": np.array([0], np.int64),
        "keys": np.array([[3, 1], [7, 0]], np.uint32),
        "weights": np.array([0.5, 1.0], np.float32),
        "default_weight": np.array([1.5], np.float32),
        "references": np.zeros(32, np.uint8),
    }
    path.write_bytes(save(arrays))
    seed, frequencies = read_frequencies(path)
    assert seed == 0 and frequencies.weights.tolist() == [0.5, 1.0]
    changes = (
        {"keys": np.array([[7, 0], [3, 1]], np.uint32)},
        {"keys": np.array([[3, 1]], np.uint32)},
        {"keys": np.array([3, 7], np.uint32)},
        {"keys": np.zeros((0, 2), np.uint32), "weights": np.zeros(0, np.float32)},
        {"weights": np.array([0.5, 2.0], np.float32)},
        {"weights": np.array([-1, 1], np.float32)},
        {"weights": np.array([np.nan, 1], np.float32)},
        {"weights": np.array([0.5, 1], np.float64)},
        {"default_weight": np.array([np.inf], np.float32)},
        {"seed": np.zeros(0, np.int64)},
        {"seed": np.array([-1], np.int64)},
    )
    contents = [save(arrays | change) for change in changes] + [b"", b"{}", save(arrays)[:-5], b"\xff" * 100]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(WorkdirError, match=r"is damaged .*: delete it; evaluate and tune write it again"):
            read_frequencies(path)


def test_a_single_candidate_cannot_be_ranked(small_workdir):
    with pytest.raises(ConfigError, match=r"config\.decode\.consensus_weight=1\.0 reranks candidates, but"):
        run_main("evaluate", f"--workdir={small_workdir}", "--config.decode.consensus_weight=1")
