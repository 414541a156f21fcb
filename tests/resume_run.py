"""A config with every kind of state that a resumed run must restore, and helpers to start, stop and compare its runs.

The config file is tests/resume_run.py, or with a feature cache, tests/resume_run.py:cached and :frozen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

STEPS = 60
# A run with which runs in buckets are compared: the fixture `short_run`.
SHORT_RUN_FLAGS = ("--config.train.steps=20", "--config.train.eval_every=10", "--config.train.checkpoint_every=5")
CHECKPOINT_EVERY = 10
ROOT = Path(__file__).resolve().parents[1]
BACKBONE = "image_encoder/backbone/.*"
TIME_METRICS = {"images_per_second", "images_per_second_per_device", "input_wait", "wall_seconds", "eta_seconds"}


def get_config(variant: str = "") -> ConfigDict:
    """Returns a config with all kinds of state and randomness.

    These are dropout, augmentation, captions that change with the epoch, batch norms, gradient accumulation, averaged
    weights and two training phases. The variant "cached" freezes the lower stages of the encoder and caches their
    features. The variant "frozen" freezes the whole encoder, caches its features, and adds a text encoder for search.
    The variant "mixture" reads tar and Parquet shards, whose folders are set by flags.
    """
    from tests.small_run import get_config as small_config

    config = small_config()
    config.data.captions_per_image = 1
    config.data.prefetch = 3
    config.data.split_field = "split"
    config.augment.flip = True
    config.augment.min_crop_scale = 0.5
    config.augment.saturation = 0.2
    config.model.memory_dropout = config.model.decoder.dropout = 0.2
    config.optimizer.grad_accum_steps = 2
    config.optimizer.ema = 0.95
    config.optimizer.rules = ((BACKBONE, {"from_step": 25}), (f"(?!{BACKBONE}).*", {"lr": 1.0}))
    if variant == "cached":
        lower = f"{BACKBONE[:-2]}(stem|stage_[12])/.*"
        upper = (f"(?!{lower}){BACKBONE}", {"from_step": 25})
        config.optimizer.rules = ((lower, {"lr": 0.0}), upper, (f"(?!{BACKBONE}).*", {"lr": 1.0}))
        config.data.feature_cache.update({"stage": "stage_2", "views": 3})
    if variant == "frozen":
        config.optimizer.rules = ((BACKBONE, {"lr": 0.0}), (f"(?!{BACKBONE}).*", {"lr": 1.0}))
        config.data.feature_cache.update({"stage": "stage_3", "views": 3})
        config.objective.contrastive_weight = 1.0
        config.optimizer.grad_accum_steps = 1  # required by the contrastive loss
        config.model.text_encoder.update({"layers": 1, "width": 16, "heads": 2, "feed_forward": 32})
        config.model.joint_embedding.width = 16
        config.data.batch_size = 8
    if variant == "mixture":
        config.data.source, config.data.split_field = "mixture", ""
        config.data.mixture = {
            "tar": {"source": "webdataset", "id_column": "id", "weight": 3.0},
            "rows": {"source": "parquet", "shuffle_window": 4},
        }
    config.train.steps = STEPS
    config.train.log_every = 1
    config.train.eval_every = 15
    config.train.checkpoint_every = CHECKPOINT_EVERY
    config.train.sample_images = 0
    return config


@dataclasses.dataclass(frozen=True)
class RunLauncher:
    """Starts `python main.py` in separate processes that share a compilation cache.

    Attributes:
        data: folder of images and captions.
        cache: folder of the compilation cache.
        config: config file, with the variant after a colon.
        script: main.py, or a script that runs it.
    """

    data: Path
    cache: Path
    config: str = __file__
    script: str = "main.py"

    def start(self, workdir: Path | str, *flags: str, log: Path | None = None, **environment: str) -> subprocess.Popen:
        """Starts or resumes a run in `workdir`. Its output is appended to `log`, by default `<workdir>.log`."""
        # Imported here because the started process loads this file as its config, without tests/ on its path.
        from quick_compilation import QUICK_COMPILATION_FLAGS

        command = [sys.executable, self.script, f"--config={self.config}", f"--workdir={workdir}"]
        settings = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": QUICK_COMPILATION_FLAGS,
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }
        with (log or log_path(workdir)).open("a") as output:
            return subprocess.Popen(
                [*command, f"--config.data.root={self.data}", *flags],
                cwd=ROOT,
                env={**os.environ, **settings, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def complete(self, workdir: Path, *flags: str) -> str:
        """Runs to the last step. Returns the log of all processes of `workdir`."""
        assert self.start(workdir, *flags).wait() == 0, log_path(workdir).read_text()
        return log_path(workdir).read_text()

    def kill_and_complete_in_bucket(
        self, workdir: str, log: Path, is_due: Callable[[], bool], **environment: str
    ) -> str:
        """Kills a short run in a bucket when `is_due()`, and resumes it to its last step. Returns the log of both."""
        process = self.start(workdir, *SHORT_RUN_FLAGS, log=log, **environment)
        try:
            while not is_due():
                assert process.poll() is None, log.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        finally:
            process.kill()
        resumed = self.start(workdir, *SHORT_RUN_FLAGS, log=log, **environment)
        assert resumed.wait() == 0, log.read_text()
        return log.read_text()

    def kill(self, workdir: Path, condition: Callable[[Path], bool], delay: float = 0.0) -> bool:
        """Starts a run and kills it `delay` seconds after `condition` becomes true.

        Returns whether the run was killed; it may finish first.
        """
        process = self.start(workdir)
        try:
            while not condition(workdir) and process.poll() is None:
                time.sleep(0.002)
            time.sleep(delay)
            process.kill()
            status = process.wait()
        finally:
            process.kill()
        assert status in (0, -signal.SIGKILL), log_path(workdir).read_text()
        return status != 0

    def stop_when(self, workdir: Path, condition: Callable[[Path], bool], signal_number: int) -> subprocess.Popen:
        """Starts a run and sends it a signal as soon as `condition` is true. Returns the finished process."""
        process = self.start(workdir)
        try:
            while not condition(workdir):
                assert process.poll() is None, "the run ended early:\n" + log_path(workdir).read_text()
                time.sleep(0.002)
            process.send_signal(signal_number)
            process.wait()
        finally:
            process.kill()
        return process


def log_path(workdir: Path) -> Path:
    return workdir.with_name(workdir.name + ".log")


def has_trained(steps: int) -> Callable[[Path], bool]:
    """Returns a condition on a workdir: metrics.jsonl has a training step of `steps` or more."""
    return lambda workdir: any(step >= steps for step, split, _ in read_rows(workdir) if split == "train")


def is_writing(steps: int, kind: str = "last") -> Callable[[Path], bool]:
    """Returns a condition on a workdir: a "last" or "best" checkpoint of `steps` steps or more is being written."""

    def condition(workdir: Path) -> bool:
        folder = workdir / "checkpoints" / kind
        if not folder.is_dir():
            return False
        names = [name for name in os.listdir(folder) if not name.isdigit()]
        return any(int(name.partition(".")[0]) >= steps for name in names if name[0].isdigit())

    return condition


def read_rows(workdir: Path) -> list[tuple[int, str, dict[str, float]]]:
    """Returns step, split and metrics, without times, of each complete line of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return parse_rows(path.read_text() if path.exists() else "")


def parse_rows(text: str) -> list[tuple[int, str, dict[str, float]]]:
    """Returns step, split and metrics, without times, of each complete line of the text of metrics.jsonl."""
    lines = text.splitlines(keepends=True)
    parsed = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        (row["step"], row["split"], {name: value for name, value in row["values"].items() if name not in TIME_METRICS})
        for row in parsed
    ]


def list_saved_steps(workdir: Path, kind: str = "last") -> list[int]:
    """Returns the steps of the "last" or "best" checkpoints in increasing order."""
    folder = workdir / "checkpoints" / kind
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.is_dir() else []


def read_state(workdir: Path, kinds: Sequence[str] = ("last", "best")) -> dict[str, bytes]:
    """Returns all arrays and records of the newest checkpoint ("last") and of the best weights ("best"), by name."""
    state = {}
    for kind in kinds:
        folder = workdir / "checkpoints" / kind / str(list_saved_steps(workdir, kind)[-1])
        for item in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            for name, value in _read_item(folder / item):
                state[f"{kind}/{folder.name}/{item}/{name}"] = value
    return state


def read_evaluation(workdir: Path, split: str = "val") -> dict:
    """Returns the scores and captions of a split, without times."""
    scores = json.loads((workdir / f"eval_{split}.json").read_text())
    scores["protocol"].pop("wall_seconds")
    return {**scores, "captions": json.loads((workdir / f"captions_{split}.json").read_text())}


def assert_same_result(actual: Path, expected: Path) -> None:
    """Asserts that two workdirs have equal states, metrics, scores and captions."""
    assert_same_state(actual, expected)
    assert any("/train/params/" in name for name in read_state(actual))  # in addition to the averages
    assert read_evaluation(actual) == read_evaluation(expected)


def assert_same_state(actual: Path, expected: Path) -> None:
    """Asserts that two workdirs have equal states and metrics."""
    state, expected_state = read_state(actual), read_state(expected)
    assert state.keys() == expected_state.keys()
    assert all(any(part in name for name in state) for part in ("/train/opt_state/", "/weights/params/", "/records/"))
    assert [name for name in state if state[name] != expected_state[name]] == []
    assert read_rows(actual) == read_rows(expected)


def _read_item(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the names and contents of the arrays or records of one item of a checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    from caption_jax.runs.late_evaluation import EVALUATION_DUE, complete_records

    if (folder / "metadata").is_file():
        records = complete_records(folder.parent, json.loads((folder / "metadata").read_text()))
        records.pop("clock", None)
        if not records.get(EVALUATION_DUE):
            records.pop(EVALUATION_DUE, None)  # the evaluation was due, and its result was added later
        yield "records", json.dumps(records, sort_keys=True).encode()
        return
    handler = ocp.StandardCheckpointHandler()
    template = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), handler.metadata(folder).tree)
    tree = handler.restore(folder, args=ocp.args.StandardRestore(template))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf).tobytes()
