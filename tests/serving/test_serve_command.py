"""`--mode=serve`: its flags, and a server of a small model from its start to a signal."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import small_run
from random_model import write_random_model

import caption_jax

CONFIG = f"--config={small_run.ROOT / 'tests' / 'small_run.py'}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "boxes"
    write_random_model(folder)
    return folder


@pytest.mark.parametrize(
    ("flag", "status", "message"),
    [
        ("--batch_sizes=4,x", 2, "--batch_sizes=x: the values must be whole numbers from 1 to 1024"),
        ("--batch_sizes=", 2, "--batch_sizes must contain at least one size, such as 1,4,16"),
        ("--beams=0", 2, "--beams=0: the values must be whole numbers from 1 to 1024"),
        ("--max_queue=3", 2, "--max_images=16 must not exceed --max_queue=3"),
        ("--port=70000", 2, "--port=70000: "),
        ("--token_file=missing", 1, "--token_file=missing: cannot be read"),
        ("--index=missing", 1, "this run was trained without a joint embedding of images and texts"),
        ("--image_folder=missing", 2, "--image_folder requires --index, the index of these images"),
        ("--config.decode.method=sample", 1, 'config.decode.method="sample" cannot be served'),
    ],
)
def test_invalid_flags_are_reported_in_one_line(workdir, capsys, flag, status, message):
    arguments = ["--mode=serve", CONFIG, f"--workdir={workdir}", "--quiet", flag]
    assert small_run.run_main(*arguments, reports_errors=True) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {message}")


def start_server(workdir: Path, cache: Path, *flags: str) -> tuple[subprocess.Popen, str]:
    """Starts a server in another process, and returns it and its URL."""
    command = [sys.executable, "main.py", "--mode=serve", CONFIG, f"--workdir={workdir}", "--port=0", *flags]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_FLAGS": ""}
    process = subprocess.Popen(
        command, cwd=small_run.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), process.communicate()
    return process, line.split()[2].rstrip(",")


def is_ready(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/readyz", timeout=10).status == 200
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return False


@pytest.mark.slow
@pytest.mark.usefixtures("unignored_signals")
def test_a_server_answers_with_the_captions_of_the_model_until_a_signal(workdir, compile_cache):
    image = io.BytesIO()
    small_run.box_image().save(image, "PNG")
    expected = caption_jax.load(workdir, decode_config={"max_length": 10}).caption(image.getvalue())
    process, url = start_server(workdir, compile_cache, "--batch_sizes=1,2")
    try:
        while not is_ready(url):
            time.sleep(0.1)
        request = urllib.request.Request(
            f"{url}/v1/captions", image.getvalue(), {"Content-Type": "image/png", "X-Request-ID": "box"}
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    caption = answer["captions"][0]
    assert (answer["id"], caption["caption"]) == ("box", expected.text)
    assert caption["log_prob"] == pytest.approx(expected.log_prob, abs=1e-3)
    assert process.returncode == 0 and "Traceback" not in err
    assert any(json.loads(line)["id"] == "box" for line in err.splitlines() if line.startswith("{"))


@pytest.mark.slow
@pytest.mark.usefixtures("unignored_signals")
def test_a_signal_while_programs_are_compiled_ends_the_server(workdir, tmp_path):
    process, url = start_server(workdir, tmp_path / "empty", "--batch_sizes=1,2,3,4,5,6")
    try:
        assert not is_ready(url)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in err and time.monotonic() - start < 30
