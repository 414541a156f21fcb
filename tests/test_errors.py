"""Commands report user errors in one line, and other errors with a traceback."""

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


def capture_error(call) -> Exception:
    with pytest.raises(Exception) as info:
        call()
    return info.value


def test_the_message_of_a_user_error_is_reported(tmp_path):
    config = default_config()
    config.optimizer.name = "nothing"
    assert "'nothing'" in user_message(capture_error(lambda: RunSpec.from_config(config)))
    (tmp_path / "results.json").write_text("{")
    error = capture_error(lambda: read_results(tmp_path / "results.json"))  # raised from a DataError
    assert user_message(error) == str(error)


def test_a_user_error_is_reported_if_it_caused_another_error():
    user_error = capture_error(lambda: compute_dtype("nothing"))

    def raise_chained_errors():
        try:
            raise OSError("there is no config") from user_error
        except OSError as error:
            raise RuntimeError("a worker failed") from error

    assert user_message(capture_error(raise_chained_errors)) == str(user_error)


def test_backbone_errors_name_the_config_key():
    config = default_config()
    config.model.encoder.variant = "b99"
    with pytest.raises(errors.ConfigError, match=r"config\.model\.encoder: there is no EfficientNet variant 'b99'"):
        RunSpec.from_config(config)


def test_other_errors_keep_their_traceback(tmp_path):
    assert user_message(capture_error(lambda: (tmp_path / "none.json").read_text())) is None
    assert user_message(capture_error(lambda: default_config().nothing)) is None
    assert user_message(capture_error(lambda: get_variant("b99"))) is None  # a ValueError, not a UserError


@pytest.mark.parametrize(
    ("error_class", "builtin_class"),
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
def test_user_errors_are_builtin_errors_and_can_be_pickled(error_class, builtin_class):
    error = pickle.loads(pickle.dumps(error_class("a/b.json is missing")))  # workers pickle their errors
    assert isinstance(error, builtin_class) and isinstance(error, errors.UserError)
    assert str(error) == "a/b.json is missing"


def test_a_command_reports_a_user_error_in_one_line(tmp_path):
    command = [sys.executable, "main.py", "--mode=caption", f"--workdir={tmp_path / 'none'}", "photo.jpg"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "none") in line
