"""What all tests share: the optional data folder and eight simulated devices."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before JAX starts: eight CPU devices, so that sharded code runs sharded wherever the tests do.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs that stands beside a development checkout, or a skip that says what is missing."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the development photographs in ../shared/data, which are not part of this repository")
    return root


@pytest.fixture
def bucket(monkeypatch):
    """A path `gs://bucket` of a bucket in memory."""
    import memory_bucket

    yield memory_bucket.make_bucket(monkeypatch)
    memory_bucket.forget()


@pytest.fixture
def own_files(tmp_path, monkeypatch) -> list[str]:
    """The files that docs/extending.md shows, importable as `own.<name>`; their paths."""
    import doc_examples

    names = doc_examples.write_own_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield names
    for module in [module for module in sys.modules if module.partition(".")[0] == "own"]:
        del sys.modules[module]


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory) -> Path:
    """Programs compiled by one test serve the others that ask for this, in this process as in those it starts.

    A folder in JAX_COMPILATION_CACHE_DIR serves from one session to the next.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or tmp_path_factory.mktemp("compile_cache"))
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


@pytest.fixture(scope="session")
def small_images(tmp_path_factory) -> Path:
    """The data of `small_run`: a folder of twelve images with captions."""
    import small_run

    return small_run.write_images(tmp_path_factory.mktemp("data") / "boxes")


@pytest.fixture(scope="session")
def small_workdir(tmp_path_factory, compile_cache, small_images) -> Path:
    """What `main.py` left after it trained the captioner of `small_run`."""
    import small_run

    workdir = tmp_path_factory.mktemp("runs") / "boxes"
    config = f"--config={small_run.ROOT / 'tests' / 'small_run.py'}"
    assert small_run.run_main(config, f"--workdir={workdir}", f"--config.data.root={small_images}") == 0
    return workdir


@pytest.fixture(scope="session")
def distinct_images(tmp_path_factory) -> Path:
    """As `small_images`, but no two training images are of the same scene."""
    import small_run

    return small_run.write_images(tmp_path_factory.mktemp("data") / "scenes", small_run.DISTINCT_SCENES)


@pytest.fixture(scope="session")
def searchable_workdir(tmp_path_factory, compile_cache, distinct_images) -> Path:
    """What `main.py` left after it trained the captioner of `small_run` with a text encoder."""
    import small_run

    workdir = tmp_path_factory.mktemp("runs") / "searchable"
    config = f"--config={small_run.ROOT / 'tests' / 'small_run.py'}"
    data = f"--config.data.root={distinct_images}"
    assert small_run.run_main(config, f"--workdir={workdir}", data, *small_run.WITH_TEXT_ENCODER) == 0
    return workdir
