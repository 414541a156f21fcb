"""What a user sees in a terminal while a command runs: never a long silence, and few lines before the scores."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import terminal_recording
from small_run import ROOT
from terminal_checks import check_output
from terminal_recording import Recording

pytestmark = pytest.mark.slow
CONFIG = ROOT / "tests" / "small_run.py"


def record_main(*arguments: str | Path, cwd: Path, **options) -> Recording:
    """Records main.py in a terminal."""
    command = [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]
    return terminal_recording.record(command, cwd=cwd, **options)


def find_bars(recording: Recording) -> set[str]:
    """Returns the descriptions of the phases that were drawn."""
    lines = {line for screen in recording.screens() for line in screen if re.match(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] ", line)}
    return {re.split(r"  |\s+━|\s+─", line[2:])[0].strip() for line in lines}


@pytest.fixture(scope="module")
def training(small_images, tmp_path_factory) -> tuple[Path, Recording]:
    """A folder with a trained run, `run`, and the recording of its training."""
    folder = tmp_path_factory.mktemp("terminal")
    arguments = [f"--config={CONFIG}", "--workdir=run", f"--config.data.root={small_images}", "--config.train.steps=40"]
    return folder, record_main(*arguments, "--config.train.eval_every=20", cwd=folder)


def test_training_shows_its_progress(training):
    folder, recording = training
    lines = check_output(recording)
    text = "\n".join(lines)
    assert re.search(r"train +8 images +16 captions", text) and re.search(r"val +2 images +4 captions", text)
    assert re.search(r"captions +at most \d+ tokens; config.data.max_length=10 truncates ", text)
    assert "1 x cpu" in text and str(folder / "run") in text.replace("\n", "")
    assert {"compiling the training step", "compiling the evaluation step", "training"} <= find_bars(recording)
    assert any(re.search(r"training +[━─]+ +\d+/40 steps", line) for screen in recording.screens() for line in screen)
    assert not re.search(r"oneDNN|InitializeLog|\.py:\d+\]", text)


def test_training_ends_with_commands_that_work(training):
    folder, recording = training
    text = "\n".join(recording.screen())
    assert "Why training ended: It reached its last step, 40." in text
    assert re.search(r"CIDEr-D +\d+\.\d+ +\d+\.\d  \[", text)
    assert (folder / "run" / "report_val.html").exists() and "report_val.html" in text
    wide = terminal_recording.render(b"".join(data for _, data in recording.chunks), (1000, 30))
    commands = [shlex.split(line) for line in wide[wide.index("Next commands:") :] if "--workdir=run" in line]
    assert [command[2] for command in commands] == ["caption", "evaluate"]
    evaluate = terminal_recording.record(commands[1], cwd=folder)
    assert "test split" in "\n".join(check_output(evaluate))


def test_quiet_training_prints_only_results(training, small_images):
    folder, _ = training
    arguments = [f"--config={CONFIG}", "--workdir=quiet", f"--config.data.root={small_images}"]
    recording = record_main(*arguments, "--config.train.steps=20", "--quiet", cwd=folder, size=(400, 30))
    lines = [line for line in recording.screen() if line and not re.match(r"\d\d:\d\d:\d\d warning: ", line)]
    assert recording.status == 0 and lines[0].startswith("val split"), lines
    assert find_bars(recording) == set()


def test_captions_in_a_pipe_have_a_bar_on_the_terminal(training, small_images):
    folder, _ = training
    with (folder / "captions.txt").open("w") as file:
        # No other test compiles this program. With compiled programs, the command may end before bars are drawn.
        flags = ["--config.decode.method=beam", "--config.decode.num_beams=7"]
        arguments = ["--mode=caption", "--workdir=run", *flags, small_images / "images"]
        recording = record_main(*arguments, cwd=folder, stdout=file.fileno())
    lines = (folder / "captions.txt").read_text().splitlines()
    assert recording.status == 0 and len(lines) == 12
    assert all(re.fullmatch(r"\S+\.png\t.*", line) for line in lines)
    output = b"".join(data for _, data in recording.chunks).decode()  # a bar may be on the screen for milliseconds
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] (starting|captioning) ", output)
    assert recording.screen() == []
