"""The first training step does not wait for the import of TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import ROOT

FIRST_STEP = """
import contextlib, sys
from pathlib import Path

import small_run
from caption_jax.runs.experiment import start_experiment
from caption_jax.specs import RunSpec
from caption_jax.training.loop import Run
from etils import epath

folder = Path(sys.argv[1])
config = small_run.get_config().unlock()
config.data.root = str(small_run.write_images(folder / "data"))
config.train.log_every = 2
imported = []


def stop_after_two_steps(step):
    imported.append((step, "tensorflow" in sys.modules))
    return step == 2


experiment = start_experiment(RunSpec.from_config(config), epath.Path(folder / "run"))
with contextlib.closing(Run(experiment)) as run:
    assert not run.train(stop_after_two_steps)
assert imported[0] == (1, False), imported
assert "tensorflow" in sys.modules  # imported to log step 2
"""


@pytest.mark.slow
def test_the_first_step_does_not_import_tensorflow(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", FIRST_STEP, str(tmp_path)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
