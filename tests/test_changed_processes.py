"""A run can be continued, and its caches written, by another number of processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import restoring_main
from process_group import ONE_IMAGE, PAIR_FLAGS, SLOW_SGD, simulate_devices, start_processes, wait_for_all
from resume_run import list_saved_steps, log_path, read_evaluation, read_rows, read_state
from tiers import slow_or_long

from caption_jax.cli.exit_status import STOPPED

STEPS = 40


def hash_checkpoint(workdir: Path) -> dict:
    """Returns the step and the hashes of the arrays of the newest checkpoint, in the form of `restoring_main`."""
    step = list_saved_steps(workdir)[-1]
    contents = {name.removeprefix(f"last/{step}/"): content for name, content in read_state(workdir, ["last"]).items()}
    del contents["records/records"]
    return {"step": step, "arrays": {name: restoring_main.hash_bytes(value) for name, value in contents.items()}}


@pytest.mark.parametrize("first", slow_or_long([2, 4], slow=[2]))
def test_fewer_processes_restore_the_state_bit_for_bit_and_continue_the_run(launcher, tmp_path, first):
    """Several processes with one device each, then one with all devices."""
    workdir, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    flags = (
        *SLOW_SGD,
        *ONE_IMAGE,
        f"--config.mesh.data={first}",
        f"--config.train.steps={STEPS}",
        "--config.train.eval_every=25",
    )
    restoring = dataclasses.replace(launcher, script=restoring_main.__file__)
    saved = None
    for count, last_step in ((first, 20), (1, STEPS)):
        environment = {**simulate_devices(first // count), "RESTORED_FOLDER": str(tmp_path)}
        all_flags = [(*flags, "--max_steps_this_run=20")] * count
        processes = start_processes(restoring, [workdir] * count, all_flags, **environment)
        statuses = wait_for_all(processes, 900)
        assert statuses == [0 if last_step == STEPS else STOPPED] * count, log_path(workdir).read_text()
        if saved:
            for index in range(count):
                assert json.loads(restoring_main.get_path(tmp_path, index).read_text()) == saved
        saved = hash_checkpoint(workdir)
        assert saved["step"] == last_step and any("opt_state" in name for name in saved["arrays"])

    process = launcher.start(undisturbed, *PAIR_FLAGS, *flags, **simulate_devices(first))
    assert process.wait() == 0, log_path(undisturbed).read_text()
    losses, expected = ([row[2]["loss"] for row in read_rows(folder)] for folder in (workdir, undisturbed))
    assert [row[:2] for row in read_rows(workdir)] == [row[:2] for row in read_rows(undisturbed)]
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert read_evaluation(workdir)["captions"] == read_evaluation(undisturbed)["captions"]


@pytest.mark.long
def test_several_processes_write_the_same_pixel_cache_as_one(launcher, tmp_path):
    contents = []
    for count in (1, 2, 4):
        workdir = tmp_path / f"run_{count}"
        flags = (*ONE_IMAGE, "--config.mesh.data=4", "--config.train.steps=1", "--config.data.pixel_cache.use=always")
        processes = start_processes(launcher, [workdir] * count, [flags] * count, **simulate_devices(4 // count))
        assert wait_for_all(processes, 900) == [0] * count, log_path(workdir).read_text()
        (path,) = workdir.glob("pixels/*/pixels.npy")
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]
