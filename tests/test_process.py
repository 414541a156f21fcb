"""A program that asks for huge pages starts anew once, with its own arguments."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from caption_jax.process import restart_with_huge_pages
print("start", flush=True)
restart_with_huge_pages()
print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(
    "given, starts, settings", [({}, 2, "glibc.malloc.hugetlb=1"), ({"GLIBC_TUNABLES": "a.b=1"}, 1, "a.b=1")]
)
def test_it_starts_anew_unless_malloc_has_other_settings(given, starts, settings):
    environment = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"} | given
    command = [sys.executable, "-c", PROGRAM, "one argument", "--two"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines() == ["start"] * starts + [f"['one argument', '--two'] {settings}"]
