"""Weight files that would fill the memory or run for hours are rejected within a second, without reading them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from weight_bombs import BOMBS, write_bombs, write_intact

from caption_jax.pretrained.weight_files import open_weights

ROOT = Path(__file__).resolve().parents[2]
MAX_SECONDS = 2.5  # of processor time; most take milliseconds, those with a million objects one second
MAX_MEGABYTES = 500  # above the memory of the process before it opens the files

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import h5py
from caption_jax.models.backbones.efficientnet_variants import get_variant
from caption_jax.pretrained.weight_files import open_weights
def read(path):
    try:
        for tensor in open_weights(path, get_variant("b0")).tensors.values():
            tensor.read()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "opened"
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, results = peak(), {}
for path in map(Path, sys.argv[1:]):
    start = time.process_time()
    results[path.name] = [*read(path), time.process_time() - start, peak() - before]
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list]:
    """Error type, message, processor seconds and megabytes of each file, opened in one child process."""
    pytest.importorskip("h5py")
    paths = write_bombs(tmp_path_factory.mktemp("bombs"))
    command = [sys.executable, "-c", SCRIPT, *map(str, paths)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert process.returncode == 0, process.stderr  # neither a crash nor an error of another type
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_rejected_with_one_line_in_bounded_time_and_memory(results, name):
    kind, message, seconds, megabytes = results[name]
    assert kind == "WeightsError", message
    assert name in message and "\n" not in message and len(message) < 700 and "Error(" not in message
    assert seconds < MAX_SECONDS and megabytes < MAX_MEGABYTES


def test_an_intact_file_of_the_same_format_is_read(tmp_path):
    tensors = open_weights(write_intact(tmp_path)).tensors
    np.testing.assert_array_equal(tensors["weight"].read(), np.zeros((2, 2), np.float32))
