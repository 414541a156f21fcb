"""The compilation cache is disabled on several CPU devices, where cached programs can hang."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
from types import SimpleNamespace
import sys
from caption_jax.cli.platform_setup import set_up_platform
options = {"dry_run": False, "quiet": False, "verbose": False, "distributed": "auto", "heartbeat": 60.0}
set_up_platform(SimpleNamespace(mode="train", workdir=sys.argv[1], **options))
import jax
print(jax.device_count(), jax.config.jax_enable_compilation_cache)
"""


@pytest.mark.parametrize("devices", [1, 2])
def test_programs_are_cached_on_a_single_cpu_device_only(tmp_path, devices):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(devices), str(devices == 1)]
