"""Environment variables for JAX, and fixtures that several test folders use."""

from __future__ import annotations

import fcntl
import functools
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import resident_memory
import shape_checks
from quick_compilation import HAS_FUSION_EMITTER_OPTION, UNDIVIDED_CODE

if TYPE_CHECKING:
    from live_server import LiveServer
    from resume_run import RunLauncher

# JAX reads these variables when it is imported. Eight CPU devices allow tests of sharding on any machine.
FLAGS = {"xla_force_host_platform_device_count": "8", **UNDIVIDED_CODE}
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is spent compiling programs that run only once, so most compiler optimizations are disabled.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "0" and HAS_FUSION_EMITTER_OPTION:
    FLAGS["xla_cpu_use_fusion_emitters"] = "false"
for name, value in FLAGS.items():
    if name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
shape_checks.install()  # before any module of this project is imported


def pytest_configure(config):
    """Sets environment variables, which worker processes inherit.

    All processes share a compilation cache in JAX_COMPILATION_CACHE_DIR, or in a temporary folder if it is not set.
    If another process is still writing a program, JAX warns and compiles it again.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="test-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    selected = config.getoption("-m")
    if "torch" not in selected or "not torch" in selected:
        # Otherwise transformers imports torch, if installed, and Triton, which has crashed processes that run JAX.
        os.environ.setdefault("USE_TORCH", "0")
        os.environ.setdefault("USE_TF", "0")


def pytest_collection_finish():
    """Collects garbage less often: half a million objects of imported packages would be searched for it each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def eight_devices():
    """Skips the test if there are fewer than eight devices. On a CPU, eight are simulated (`FLAGS`)."""
    import jax

    if jax.device_count() < 8:
        pytest.skip(f"needs 8 devices; found {jax.device_count()}")


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Clears JAX's caches after a module if the process uses more than 1,500 MB, mostly for compiled programs.

    Memory that is freed but not returned would count again, so that the caches of each later module would be cleared.
    """
    yield
    if "jax" in sys.modules and resident_memory.read_resident_mb() > 1500:
        from caption_jax.runtime.memory import return_freed_memory

        sys.modules["jax"].clear_caches()
        return_freed_memory()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development photographs next to the checkout. Skips the test if it does not exist."""
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the development photographs in ../shared/data, which are not part of this repository")
    return root


@pytest.fixture(scope="session")
def shared_cases(shared_data) -> Path:
    """The folder of cases next to the checkout. Skips the test if it does not exist."""
    folder = shared_data.parent / "cases"
    if not folder.is_dir():
        pytest.skip("needs the files in ../shared/cases, which are not part of this repository")
    return folder


@pytest.fixture(scope="module")
def unignored_signals() -> Iterator[None]:
    """Restores the default handlers, which child processes inherit; a test run in the background ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def bucket(monkeypatch):
    """The path `gs://bucket` of an empty in-memory bucket."""
    import memory_bucket

    yield memory_bucket.make_bucket(monkeypatch)
    memory_bucket.clear_file_system_cache()


@pytest.fixture
def example_files(tmp_path, monkeypatch) -> list[str]:
    """Paths of the example files of docs/extending.md, which can be imported as `custom.<name>`."""
    import doc_examples

    paths = doc_examples.write_example_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield paths
    for module in [module for module in sys.modules if module.partition(".")[0] == "custom"]:
        del sys.modules[module]


@pytest.fixture(scope="session")
def compile_cache() -> Path:
    """The folder of the compilation cache, also for processes that tests start."""
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def build_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`build_once(name, make)` returns a folder shared by all test processes. The first call fills it with `make`."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def small_images(build_once) -> Path:
    """The data of `small_run`: a folder of twelve images with captions. Tests must not modify it."""
    import small_run

    return build_once("data/boxes", small_run.write_images)


@pytest.fixture(scope="session")
def launcher(small_images, compile_cache) -> RunLauncher:
    """Starts runs of main.py in other processes."""
    from resume_run import RunLauncher

    return RunLauncher(small_images, compile_cache)


@pytest.fixture(scope="session")
def short_run(build_once, launcher) -> Path:
    """The workdir of a local run with `SHORT_RUN_FLAGS`. Tests must not modify it."""
    from resume_run import SHORT_RUN_FLAGS

    return build_once("trained/short", lambda workdir: launcher.complete(workdir, *SHORT_RUN_FLAGS))


@pytest.fixture(scope="session")
def small_workdir(build_once, small_images, tmp_path_factory) -> Path:
    """The workdir of the trained captioner of `small_run`. Each process has a separate copy."""
    workdir = build_once("trained/boxes", functools.partial(train_small, small_images))
    return Path(shutil.copytree(workdir, tmp_path_factory.mktemp("runs") / "boxes"))


@pytest.fixture(scope="session")
def distinct_images(build_once) -> Path:
    """Like `small_images`, but each training image has a different scene."""
    import small_run

    return build_once("data/scenes", functools.partial(small_run.write_images, scenes=small_run.DISTINCT_SCENES))


@pytest.fixture(scope="session")
def searchable_workdir(build_once, distinct_images, tmp_path_factory) -> Path:
    """Like `small_workdir`, trained on `distinct_images` with a text encoder."""
    import small_run

    train = functools.partial(train_small, distinct_images, flags=small_run.TEXT_ENCODER_FLAGS)
    workdir = build_once("trained/searchable", train)
    return Path(shutil.copytree(workdir, tmp_path_factory.mktemp("runs") / "searchable"))


@pytest.fixture(scope="module")
def index_folders(searchable_workdir, tmp_path_factory) -> tuple[Path, Path]:
    """The folders of an index of coloured boxes and of its images."""
    import live_server

    return live_server.make_index(searchable_workdir, tmp_path_factory.mktemp("indexed"))


@pytest.fixture(scope="module")
def search_server(searchable_workdir, index_folders, compile_cache, tmp_path_factory) -> Iterator[LiveServer]:
    """A server of the captioner of `searchable_workdir` and of an index, in another process."""
    import live_server

    index, images = index_folders
    flags = (f"--index={index}", f"--image_folder={images}", *live_server.FLAGS)
    log = tmp_path_factory.mktemp("server") / "log"
    with live_server.run_server(searchable_workdir, compile_cache, log, *flags) as server:
        yield server


def train_small(images: Path, workdir: Path, flags: Sequence[str] = ()) -> None:
    """Trains with the config of `small_run` on a folder of images."""
    import small_run

    config = f"--config={small_run.ROOT / 'tests' / 'small_run.py'}"
    assert small_run.run_main(config, f"--workdir={workdir}", f"--config.data.root={images}", *flags) == 0
