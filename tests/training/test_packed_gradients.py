"""Metrics and gradients do not depend on packing, devices, microbatches and processes, for all kinds of captions."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import gradient_step
import numpy as np
import pytest
from gradient_step import GRADIENT, assert_same, make_batch, make_step
from process_group import reserve_address, wait_for_all
from quick_compilation import QUICK_COMPILATION_FLAGS
from tiers import slow_or_long

from input_pipeline import packing as packing_module

TESTS = Path(__file__).resolve().parents[1]


@functools.cache
def compute_expected(objectives: str, captions: int = 3) -> dict[str, np.ndarray]:
    """Returns the results on one device with one caption per row."""
    return make_step(objectives)(make_batch(captions))


@pytest.mark.slow
def test_all_metrics_and_gradients_are_compared():
    result = compute_expected("captions")
    assert {"loss", "token_accuracy", "tokens", "gradient_norm"} < result.keys()
    gradients = [array for name, array in result.items() if name.startswith(GRADIENT)]
    assert len(gradients) > 50 and all(np.isfinite(array).all() and array.any() for array in gradients)


PROCESSES = [("context", 2, 4), ("contrastive", 2, 1), ("context", 4, 4), ("contrastive", 4, 1)]
OTHERS = [pytest.param(packing, marks=pytest.mark.slow) for packing in ("short_blocks", "always")]


@pytest.mark.parametrize("packing", ["blocks", *OTHERS])
def test_results_do_not_depend_on_packing(packing):
    assert_same(make_step("captions", packing)(make_batch()), compute_expected("captions"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["targets", "positions", "segment_ids"])
def test_an_error_in_a_single_packed_token_is_detected(name, monkeypatch):
    """The comparison fails if the packed arrays of one token are wrong."""
    pack_blocks = packing_module.pack_blocks

    def pack_wrongly(*arguments):
        packed = pack_blocks(*arguments)
        (token, *_) = np.argwhere(packed["positions"] == 2)
        packed[name][tuple(token)] += 1
        return packed

    monkeypatch.setattr("caption_jax.training.batch_placer.pack_blocks", pack_wrongly)
    result = make_step("captions", "blocks")(make_batch())
    with pytest.raises(AssertionError, match="Mismatched elements"):
        assert_same(result, compute_expected("captions"))


@pytest.mark.slow
@pytest.mark.parametrize("captions", [1, 5])
def test_results_do_not_depend_on_packing_for_other_numbers_of_captions(captions):
    actual = make_step("captions", "blocks", devices=8)(make_batch(captions))
    assert_same(actual, compute_expected("captions", captions))


COMBINATIONS = [
    ("captions", "always", 8, 1),
    ("captions", "short_blocks", 8, 4),
    ("contrastive", "always", 1, 1),
    ("contrastive", "blocks", 1, 1),
    ("contrastive", "short_blocks", 8, 1),
    ("context", "always", 8, 1),
    ("context", "blocks", 1, 4),
    ("context", "blocks", 8, 1),
    ("context", "short_blocks", 8, 4),
]


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("objectives", "packing", "devices", "microbatches"),
    slow_or_long(COMBINATIONS, slow=[COMBINATIONS[1], COMBINATIONS[4], COMBINATIONS[6]]),
)
def test_results_do_not_depend_on_devices_and_microbatches(objectives, packing, devices, microbatches):
    assert_same(make_step(objectives, packing, devices, microbatches)(make_batch()), compute_expected(objectives))


@pytest.mark.parametrize(
    ("objectives", "processes", "microbatches"),
    slow_or_long(PROCESSES, slow=[("context", 2, 4)]),
)
def test_results_do_not_depend_on_processes(objectives, processes, microbatches, tmp_path):
    """Four devices belong to two or four processes, each of which packs the captions of its images."""
    output, address = tmp_path / "result.npz", reserve_address()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "XLA_FLAGS": f"{QUICK_COMPILATION_FLAGS} --xla_force_host_platform_device_count={4 // processes}",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # see `caption_jax.runtime.compilation_cache`
    }
    command = [sys.executable, gradient_step.__file__, objectives, "blocks", str(microbatches), address]
    started = [
        subprocess.Popen([*command, str(processes), str(process), str(output)], env=environment)
        for process in range(processes)
    ]
    assert wait_for_all(started, timeout_seconds=300) == [0] * processes
    assert_same(dict(np.load(output)), compute_expected(objectives))
