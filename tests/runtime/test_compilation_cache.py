"""Compiled programs are stored in the workdir or the user's cache, without changing JAX's configuration."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from damaged_weights import DAMAGE

from caption_jax.runtime import compilation_cache
from caption_jax.runtime.cached_program import CachedProgram
from caption_jax.runtime.compilation_cache import is_cache_safe, locate_cache, scoped_cache

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def read_only(monkeypatch):
    """Makes folders whose path contains "read_only" read-only, also for root."""
    monkeypatch.setattr(os, "access", lambda path, mode: "read_only" not in str(path))


@pytest.fixture(autouse=True)
def enabled_cache():
    """Enables JAX's compilation cache, which another test may have disabled."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", True)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@pytest.fixture
def no_cache(monkeypatch):
    """Removes the compilation cache of the tests from JAX's configuration."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_cache_is_in_the_workdir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert locate_cache(tmp_path / "run") == str(tmp_path / "run" / "compile_cache")
    assert locate_cache("gs://bucket/run") == "gs://bucket/run/compile_cache"
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "manifest.json").touch()  # a model folder may be shared
    assert locate_cache(tmp_path / "exported") == str(tmp_path / "cache" / "caption-jax")


def test_without_a_writable_workdir_the_cache_is_in_the_home_folder(tmp_path, monkeypatch, read_only):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "read_only").mkdir()
    for workdir in (None, tmp_path / "read_only" / "run"):
        assert locate_cache(workdir) == str(tmp_path / "cache" / "caption-jax")
    (tmp_path / "file").touch()
    assert locate_cache(tmp_path / "file") == str(tmp_path / "cache" / "caption-jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate_cache(None) == str(tmp_path / ".cache" / "caption-jax")
    monkeypatch.setenv("HOME", str(tmp_path / "read_only"))
    assert locate_cache(None) is None


def test_caching_is_unsafe_with_several_cpu_devices_or_if_the_user_disabled_it(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert is_cache_safe() == (jax.default_backend() != "cpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert is_cache_safe()
    jax.config.update("jax_enable_compilation_cache", False)
    assert not is_cache_safe()


def list_files(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.iterdir() if not path.name.endswith("-atime")}


def test_programs_are_stored_in_the_default_folder(no_cache, tmp_path):
    folder = tmp_path / "programs"
    minimum = jax.config.jax_persistent_cache_min_compile_time_secs
    program = CachedProgram(lambda x: x * 2 + 1, "double", {}, default_folder=str(folder))
    assert program(jnp.arange(3.0)).tolist() == [1, 3, 5]
    assert program(jnp.arange(3.0)).tolist() == [1, 3, 5]
    assert list_files(folder) == {"double", "jit_call"}, "the traced and the compiled program"
    assert jax.config.jax_compilation_cache_dir is None
    assert jax.config.jax_persistent_cache_min_compile_time_secs == minimum


def test_the_cache_of_the_user_takes_precedence(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "user"))
    program = CachedProgram(lambda x: x + 1, "increment", {}, default_folder=str(tmp_path / "default"))
    assert program(jnp.arange(3.0)).tolist() == [1, 2, 3]
    assert "increment" in list_files(tmp_path / "user") and not (tmp_path / "default").exists()
    jax.config.update("jax_compilation_cache_dir", "")
    assert (
        CachedProgram(lambda x: x + 1, "increment", {}, default_folder=str(tmp_path / "default"))(
            1.0 * jnp.ones(2)
        ).sum()
        == 4
    )
    assert not (tmp_path / "default").exists(), "an empty setting disables the cache"


def test_settings_are_restored_after_an_error(no_cache, tmp_path):
    with pytest.raises(RuntimeError, match="inside"), scoped_cache(str(tmp_path)):
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        raise RuntimeError("inside")
    assert jax.config.jax_compilation_cache_dir is None
    assert compilation_cache.is_cache_safe() in (True, False)


SCRIPT = """
import sys
import numpy as np
import jax
from caption_jax.runtime.compilation_cache import guard_programs
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
guard_programs()
guard_programs()
x = np.arange(4096, dtype=np.float32).reshape(64, 64) / 4096
print(float(np.asarray(jax.jit(lambda x: jax.numpy.tanh(x @ x.T).sum(0) * jax.numpy.sin(x).sum())(x)).sum()))
"""


def test_a_damaged_compiled_program_is_compiled_again_and_replaced(tmp_path):
    """In child processes, which a damaged program could crash."""

    def run(kind: str) -> str:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert process.returncode == 0, (kind, process.stderr)
        assert kind == "intact" or ("is damaged" in process.stderr and "Traceback" not in process.stderr), kind
        return process.stdout

    expected = run("intact")
    (file,) = tmp_path.glob("*-cache")
    assert file.read_bytes()[:1] == b"x"  # compressed with zlib, which has a checksum
    for kind in sorted(DAMAGE.keys() - {"missing"}):
        DAMAGE[kind](file)
        assert run(kind) == expected
        assert zlib.decompress(file.read_bytes())  # which checks it
