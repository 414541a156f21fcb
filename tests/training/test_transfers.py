"""Training on eight devices transfers nothing to the host between log points."""

from __future__ import annotations

import contextlib

import pytest
import small_run
from etils import epath
from host_transfers import count_conversions
from resume_run import read_rows

from caption_jax.runs.experiment import start_experiment
from caption_jax.specs import RunSpec
from caption_jax.training.loop import Run

STEPS, LOG_EVERY = 12, 5


@pytest.mark.slow
def test_nothing_is_transferred_to_the_host_outside_log_points(eight_devices, small_images, compile_cache, tmp_path):
    config = small_run.get_config()
    config.data.root = str(small_images)
    config.data.batch_size = config.data.eval_batch_size = config.mesh.data = 8
    config.train.update({"steps": STEPS, "log_every": LOG_EVERY, "eval_every": STEPS, "checkpoint_every": STEPS})
    steps_with_transfers = set()
    experiment = start_experiment(RunSpec.from_config(config), epath.Path(tmp_path))
    with contextlib.closing(Run(experiment)) as run, count_conversions() as conversions:

        def record_transfers(step: int) -> bool:
            if conversions and step > 1:  # compiling the first step reads constants
                steps_with_transfers.add(step)
            conversions.clear()
            return False

        assert run.train(record_transfers)
    # Log points are read after the next step is dispatched; the last step is evaluated and saved at once.
    assert steps_with_transfers == {LOG_EVERY + 1, 2 * LOG_EVERY + 1, STEPS}
    assert [step for step, split, _ in read_rows(tmp_path) if split == "train"] == [LOG_EVERY, 2 * LOG_EVERY, STEPS]
