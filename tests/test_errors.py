"""Errors of a command: one line if the user can fix it, a traceback if the program has a bug."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from small_run import ROOT

from caption_jax import errors
from caption_jax.config import default_config
from caption_jax.errors import user_message
from caption_jax.metrics import ImageSetError, read_results
from caption_jax.models.backbones.efficientnet_variants import get_variant
from caption_jax.runs.description import compute_dtype
from caption_jax.runtime.stopping import NonFiniteLossError
from caption_jax.specs import RunSpec


def caught(call) -> Exception:
    with pytest.raises(Exception) as info:
        call()
    return info.value


def test_a_user_error_gives_its_message(tmp_path):
    config = default_config()
    config.optimizer.name = "nothing"
    assert "'nothing'" in user_message(caught(lambda: RunSpec.from_config(config)))
    (tmp_path / "results.json").write_text("{")
    error = caught(lambda: read_results(tmp_path / "results.json"))  # caused by another error
    assert user_message(error) == str(error)


def test_user_errors_are_found_through_their_causes():
    user_error = caught(lambda: compute_dtype("nothing"))

    def wrap():
        try:
            raise OSError("there is no config") from user_error
        except OSError as error:
            raise RuntimeError("a worker failed") from error

    assert user_message(caught(wrap)) == str(user_error)


def test_a_check_of_a_backbone_names_the_key():
    config = default_config()
    config.model.encoder.variant = "b99"
    with pytest.raises(errors.ConfigError, match=r"config\.model\.encoder: there is no EfficientNet variant 'b99'"):
        RunSpec.from_config(config)


def test_other_errors_keep_their_traceback(tmp_path):
    assert user_message(caught(lambda: (tmp_path / "none.json").read_text())) is None
    assert user_message(caught(lambda: default_config().nothing)) is None
    assert user_message(caught(lambda: get_variant("b99"))) is None  # a plain ValueError, because of a wrong call


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.WorkdirError, ValueError),
        (errors.WeightsError, ValueError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.MissingPackageError, ModuleNotFoundError),
        (errors.LockedError, BlockingIOError),
        (NonFiniteLossError, RuntimeError),
        (ImageSetError, ValueError),
    ],
)
def test_each_kind_is_a_builtin_error(kind, builtin):
    error = pickle.loads(pickle.dumps(kind("a/b.json is missing")))  # as in a worker process
    assert isinstance(error, builtin) and isinstance(error, errors.UserError)
    assert str(error) == "a/b.json is missing"


def test_a_command_prints_one_line(tmp_path):
    command = [sys.executable, "main.py", "--mode=caption", f"--workdir={tmp_path / 'none'}", "photo.jpg"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "none") in line
