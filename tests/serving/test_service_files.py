"""The files of docs/serving.md that other programs read."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from small_run import ROOT

from caption_jax.cli.subcommands import SUBCOMMANDS

TEXT = (ROOT / "docs" / "serving.md").read_text("utf-8")


def read_block(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    return block


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    unit = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", read_block("ini"), flags=re.MULTILINE)
    file = tmp_path / "caption-jax.service"
    file.write_text(unit)
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    file.write_text(unit.replace("PrivateTmp=yes", "PrivateTemp=yes"))
    assert "Unknown key" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_the_container_installs_the_extra_and_starts_the_server():
    lines = read_block("dockerfile").splitlines()
    assert [line.split()[0] for line in lines] == ["FROM", "COPY", "RUN", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT"]
    assert re.fullmatch(r'ENTRYPOINT \["caption-jax", "serve", .*\]', lines[-1])
    assert re.fullmatch(r"FROM python:3\.1[1-3]-slim", lines[0])
    assert "/src[serve]" in lines[2] and "serve" in SUBCOMMANDS
