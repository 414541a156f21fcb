"""Models on the Hugging Face Hub: `export --push`, and the name `hf://owner/name` instead of a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from hub_emulator import TOKEN, HubEmulator
from small_run import run_main
from varied_models import write_varied_model

from caption_jax.errors import ConfigError
from caption_jax.named_models import describe_hub_error, is_shared_copy, locate_model
from caption_jax.runs.loading import read_model

SNAPSHOT = "hub/models--some--boxes/snapshots/0123"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "boxes"
    write_varied_model(folder)
    shutil.copy(next(folder.glob("model-*")) / "config.json", folder)
    return folder


@pytest.mark.parametrize("name", ["hf://boxes", "hf://", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@v 1"])
def test_malformed_names_are_rejected_before_anything_is_downloaded(name):
    for call in (locate_model, read_model):
        with pytest.raises(ConfigError, match=f"^{name}: .*hf://owner/name"):
            call(name)


def test_other_sources_are_unchanged(tmp_path):
    assert locate_model(tmp_path) == str(tmp_path)
    assert locate_model("gs://bucket/run") == "gs://bucket/run"
    assert is_shared_copy(tmp_path / SNAPSHOT) and not is_shared_copy(tmp_path)


def test_errors_are_one_line_with_a_remedy():
    class RefusedError(Exception):
        response = type("Response", (), {"status_code": 403})

    assert "HF_TOKEN" in describe_hub_error(RefusedError("several\nlines"))
    assert describe_hub_error(OSError("two\n lines")).startswith("OSError: two lines; check the connection")


def test_commands_that_write_to_the_workdir_need_a_folder(capsys):
    assert run_main("evaluate", "--workdir=hf://some/boxes", reports_errors=True) == 2
    assert "export --workdir=hf://some/boxes --to=folder --out=FOLDER downloads" in capsys.readouterr().err


def test_results_are_not_written_to_a_snapshot_of_the_hub(workdir, tmp_path, capsys):
    snapshot = tmp_path / SNAPSHOT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(workdir)
    assert run_main("export", f"--workdir={snapshot}", "--to=folder", reports_errors=True) == 2
    assert "set --out=FOLDER" in capsys.readouterr().err
    assert run_main("search", f"--workdir={snapshot}", "--query=a box", reports_errors=True) == 1
    assert "set --index to a folder" in capsys.readouterr().err


def run_command(folder: Path, url: str, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess:
    """Runs `caption-jax` with a cache of the Hub's client in `folder`, and an access token."""
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(folder / "cache"), "HF_TOKEN": token}
    environment = {**os.environ, **settings, "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": str(folder / "programs")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "caption_jax", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_model_is_uploaded_and_captions_under_its_name_also_without_a_connection(workdir, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "exported"
    small_run.box_image().save(photo)
    with HubEmulator() as hub:
        export = ("export", f"--workdir={workdir}", "--to=folder", "--push=some/boxes", f"--out={out}")
        refused = run_command(tmp_path, hub.url, *export, token="hf_other")
        assert refused.returncode == 1 and not out.exists()
        assert "--push=some/boxes: the Hub answers 401" in refused.stderr and "HF_TOKEN" in refused.stderr

        pushed = run_command(tmp_path, hub.url, *export)
        assert (pushed.returncode, pushed.stdout) == (0, f"{out}\nhf://some/boxes\n"), pushed.stderr
        assert hub.private["some/boxes"]
        files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert hub.files["some/boxes"] == files

        caption = ("caption", "--workdir=hf://some/boxes", str(photo))
        downloaded = run_command(tmp_path, hub.url, *caption)
        absent = run_command(tmp_path, hub.url, "caption", "--workdir=hf://some/absent", str(photo))
    local = run_command(tmp_path, hub.url, "caption", f"--workdir={out}", str(photo))
    assert downloaded.stdout == local.stdout != "", downloaded.stderr
    assert absent.returncode == 1 and "hf://some/absent could not be downloaded: the Hub answers 404" in absent.stderr
    without_connection = run_command(tmp_path, hub.url, *caption)
    assert without_connection.stdout == local.stdout, without_connection.stderr
    snapshots = tmp_path / "cache/hub/models--some--boxes/snapshots"
    assert not list(snapshots.rglob("compile_cache")) and list((tmp_path / "programs").rglob("*"))
