"""Training, evaluation and captioning with `python main.py`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_run import ROOT, run_main

import caption_jax
from caption_jax.metrics import read_results
from caption_jax.runs.workdir import RunDescription
from caption_jax.telemetry.metrics_file import read_metrics

CONFIG = ROOT / "tests" / "small_run.py"


def test_training_writes_the_documented_files(small_workdir):
    first_column = re.findall(r"^\| `(\S+)` \|", (ROOT / "docs" / "workdir.md").read_text(), flags=re.MULTILINE)
    names = [name for name in first_column if "." in name or name.endswith("/")]
    assert len(names) >= 10
    optional = {
        *("training.lock", "profile/", "features/<key>/", "pixels/<key>/", "objectives/<label>.npz"),
        *("checkpoints/set_aside/<kind>-<step>/", "document_frequencies.safetensors", "soup.json"),
        "export/<format>/",
    }
    for name in set(names) - optional - {"compile_cache/"}:  # tests use a compilation cache outside the workdir
        pattern = name.rstrip("/").replace("<step>", "[0-9]*").replace("<split>", "val").replace("<kind>", "last")
        assert list(small_workdir.glob(pattern)), name
    assert [path.stat().st_size > 0 for path in (small_workdir / "tensorboard").glob("events.*")] == [True]
    with Image.open(small_workdir / "loss_curve.png") as plot:
        assert plot.width > 300


def test_training_logs_each_interval_once(small_workdir):
    rows = read_metrics(small_workdir / "metrics.jsonl")
    assert [(row.step, row.split) for row in rows] == [*((step, "train") for step in range(20, 161, 20)), (160, "val")]
    losses = [row.values["loss"] for row in rows[:3]]
    assert losses[2] < losses[0]
    assert rows[2].values["unreadable_images"] == 0


def test_evaluation_results_contain_metrics_intervals_and_protocol(small_workdir):
    results = json.loads((small_workdir / "eval_val.json").read_text())
    keys = {"split", "step", "metrics", "intervals", "absent", "notes", "diversity", "protocol", "images"}
    assert set(results) == keys
    assert (results["split"], results["step"]) == ("val", 160)
    metrics = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "exact_match", "loss", "token_accuracy"}
    assert set(results["metrics"]) >= metrics
    assert results["protocol"]["images"] == 2 and results["protocol"]["unreadable"] == {}
    assert {"tokenization", "decode", "image_input", "intervals", "versions"} <= set(results["protocol"])
    low, high = results["intervals"]["CIDEr-D"]
    assert low <= results["metrics"]["CIDEr-D"] <= high
    assert {"novel", "distinct-1", "mean_length", "function_word_ending"} <= set(results["diversity"])
    assert [image["image_id"] for image in results["images"]] == ["08.png", "09.png"]
    assert all(image["log_prob"] < 0 and 0 <= image["ROUGE-L"] <= 1 for image in results["images"])


def test_captions_are_in_the_coco_results_format(small_workdir):
    captions = read_results(small_workdir / "captions_val.json")
    assert list(captions) == ["08.png", "09.png"]
    assert all("box" in caption for caption in captions.values())


def test_evaluate_mode_writes_results_of_each_split_and_of_blank_images_to_separate_files(small_workdir, capsys):
    before = (small_workdir / "eval_val.json").read_text()
    assert run_main("--mode=evaluate", f"--workdir={small_workdir}", "--split=test") == 0
    output = capsys.readouterr().out
    assert "test split: 2 images (real)" in output
    assert re.search(r"METEOR +absent: left out of the tests", output)
    assert re.search(r"CIDEr-D +\d\.\d+ +\d+\.\d +\[\d\.\d+, \d\.\d+\]", output) and re.search(
        r"novel +\d\.\d+", output
    )
    report = (small_workdir / "report_test.html").read_text()
    assert report.count("<img") > 4 + 2 * 3  # images, and attention maps of two captions
    assert "10.png" in report and "<svg" in report
    characters = "--config.metrics.tokenizer=characters"
    assert run_main("--mode", "evaluate", "--workdir", small_workdir, "--images=blank", characters) == 0
    assert "val split: 2 images (blank)" in capsys.readouterr().out
    blank = json.loads((small_workdir / "eval_val_blank.json").read_text())
    assert blank["protocol"]["image_input"] == "blank"
    assert blank["protocol"]["tokenization"].startswith("characters of CJK")
    assert len(set(read_results(small_workdir / "captions_val_blank.json").values())) == 1
    assert list(read_results(small_workdir / "captions_test.json")) == ["10.png", "11.png"]
    assert (small_workdir / "eval_val.json").read_text() == before
    assert not (small_workdir / "report_val_blank.html").exists()


def test_evaluate_mode_applies_and_reports_decoding_overrides(small_workdir, capsys):
    beam = ["--config.decode.method=beam", "--config.decode.num_beams=2", "--config.decode.prefix=on the"]
    assert run_main("--mode=evaluate", f"--workdir={small_workdir}", "--split=test", *beam) == 0
    protocol = "beam alpha=0.0 length_penalty=power max_length=10 num_beams=2 prefix=on the"
    assert f"decoding: {protocol}" in capsys.readouterr().out
    captions = read_results(small_workdir / "captions_test.json")
    assert all(caption.startswith("on the") for caption in captions.values())
    assert protocol in (small_workdir / "report_test.html").read_text()


def test_a_copied_model_folder_can_be_used_as_a_workdir(small_workdir, small_images, tmp_path, capsys):
    model = shutil.copytree(next(small_workdir.glob("model-*")), tmp_path / "boxes")
    outputs = []
    for folder in (small_workdir, model):
        assert run_main("--mode=caption", f"--workdir={folder}", small_images / "images" / "10.png") == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "box" in outputs[0]
    assert run_main("--mode=evaluate", f"--workdir={model}") == 0
    assert read_results(model / "captions_val.json") == read_results(small_workdir / "captions_val.json")


def test_the_error_for_an_unknown_split_lists_the_splits(small_workdir):
    with pytest.raises(ValueError, match=r"no split 'dev'; the dataset has train \(8\), val \(2\), test \(2\)"):
        run_main("--mode=evaluate", f"--workdir={small_workdir}", "--split=dev")


def test_caption_mode_accepts_paths_patterns_and_folders(small_workdir, small_images, capsys):
    images = small_images / "images"
    status = run_main("--mode=caption", f"--workdir={small_workdir}", images / "03.png", images / "0[01].png", images)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert status == 0
    assert [Path(path).stem for path, _ in lines] == ["03", "00", "01", *(f"{number:02d}" for number in range(12))]
    captions = {}
    for path, caption in lines:
        assert captions.setdefault(path, caption) == caption and "box" in caption


@pytest.fixture
def empty_cache(tmp_path):
    """An empty compilation cache."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_a_second_caption_command_does_not_compile_or_trace(small_workdir, small_images, empty_cache, monkeypatch):
    arguments = ["--mode=caption", f"--workdir={small_workdir}", small_images / "images" / "00.png"]
    assert run_main(*arguments) == 0
    cached = sorted(path.name for path in empty_cache.iterdir() if not path.name.endswith("-atime"))
    assert any(re.fullmatch(r"caption-[0-9a-f]{32}\.stablehlo", name) for name in cached)
    monkeypatch.setattr(RunDescription, "model", lambda self: pytest.fail("the model was built to be traced"))
    assert run_main(*arguments) == 0
    assert sorted(path.name for path in empty_cache.iterdir() if not path.name.endswith("-atime")) == cached


def test_caption_mode_writes_json_lines_and_applies_decoding_overrides(small_workdir, small_images, capsys):
    arguments = ["--mode=caption", "--format=jsonl", "--checkpoint=last", "--config.decode.max_length=4"]
    arguments.append("--config.decode.prefix=on the")
    assert run_main(*arguments, f"--workdir={small_workdir}", small_images / "images" / "00.png") == 0
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert set(result) >= {"path", "caption", "log_prob", "tokens"}
    assert 0 < len(result["tokens"]) <= 3 and "".join(result["tokens"]).strip() == result["caption"]
    assert result["log_prob"] < 0 and result["caption"].startswith("on the")


def test_the_exit_status_of_caption_mode_reports_skipped_images(small_workdir, small_images, tmp_path, capsys):
    arguments = ["--mode=caption", f"--workdir={small_workdir}"]
    assert run_main(*arguments, tmp_path / "none.jpg", small_images / "images" / "00.png") == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1 and "none.jpg: no such file" in output.err
    assert run_main(*arguments, tmp_path, str(tmp_path / "*.jpg")) == 2
    assert run_main(*arguments) == 2
    assert "no images" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems reject file names that are not UTF-8")
def test_caption_mode_accepts_file_names_that_are_not_utf8(small_workdir, small_images, tmp_path, capfdbinary):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(small_images / "images" / "00.png", path)
    arguments = ["--mode=caption", f"--workdir={small_workdir}", tmp_path]
    assert run_main(*arguments) == 0
    assert capfdbinary.readouterr().out.split(b"\t")[0] == os.fsencode(tmp_path) + rb"/caf\udce9.png"  # escaped
    assert run_main(*arguments, "--format=jsonl") == 0
    assert os.fsencode(json.loads(capfdbinary.readouterr().out)["path"]) == path


def test_a_captioner_accepts_all_image_types(small_workdir, small_images):
    path = small_images / "images" / "02.png"
    with Image.open(path) as opened:
        image = opened.copy()
    captioner = caption_jax.load(str(small_workdir))
    expected, *captions = captioner.caption([path, str(path), image, np.array(image), path.read_bytes()])
    single = captioner.caption(image)
    assert "box" in expected.text and expected.log_prob < 0
    for caption in captions:
        assert (caption.text, caption.tokens) == (expected.text, expected.tokens)
        assert caption.log_prob == pytest.approx(expected.log_prob, abs=1e-5)
    assert single.text == expected.text and single.log_prob == pytest.approx(expected.log_prob, abs=1e-4)
    assert captioner.caption([]) == []


@pytest.mark.parametrize(
    ("argument", "suggestion"), [("--config.data.bach_size=8", "batch_size"), ("--config.dta.batch_size=8", "data")]
)
def test_the_error_for_an_unknown_config_flag_suggests_a_key(tmp_path, small_images, argument, suggestion):
    with pytest.raises((AttributeError, KeyError), match=f'Did you mean "{suggestion}"'):
        run_main(f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", f"--config.data.root={small_images}", argument)
    assert not (tmp_path / "run").exists()


def test_the_error_for_an_unknown_key_in_a_config_file_suggests_a_key(tmp_path):
    path = tmp_path / "custom.py"
    lines = ["from caption_jax.config import default_config", "", "def get_config():", "    config = default_config()"]
    path.write_text("\n".join([*lines, "    config.optimizer.lerning_rate = 1.0", "    return config", ""]))
    with pytest.raises(AttributeError, match='Did you mean "learning_rate"'):
        run_main(f"--config={path}", f"--workdir={tmp_path / 'run'}")


def test_a_folder_that_is_not_a_workdir_is_rejected(tmp_path):
    with pytest.raises(OSError, match=f"config.json is missing: {tmp_path} is not the workdir of a training run"):
        run_main("--mode=caption", f"--workdir={tmp_path}", "a.jpg")


@pytest.mark.slow
def test_the_command_uses_the_documented_streams_and_exit_statuses(
    small_workdir, small_images, compile_cache, tmp_path
):
    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compile_cache)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    (tmp_path / "broken.jpg").write_text("not an image")
    process = run("--mode=caption", f"--workdir={small_workdir}", "broken.jpg", small_images / "images" / "00.png")
    assert process.returncode == 1, process.stderr
    assert [line.split("\t")[0] for line in process.stdout.splitlines()] == [str(small_images / "images" / "00.png")]
    assert "error: broken.jpg: not in a supported image format" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "compile_cache").exists()
    images = " ".join([str(small_images / "images")] * 2)
    command = f"{sys.executable} {ROOT / 'main.py'} --mode=caption --workdir={small_workdir} {images}"
    piped = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 1"], capture_output=True, text=True, check=False
    )
    assert (piped.returncode, len(piped.stdout)) == (141, 1) and "Traceback" not in piped.stderr
    rejected = run("--mode=train", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}", "stray.jpg")
    assert rejected.returncode == 2 and "takes no arguments" in rejected.stderr and "Traceback" not in rejected.stderr
    assert "--workdir" in run("--mode=evaluate").stderr
