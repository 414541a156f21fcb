"""A config and dataset with which a captioner trains within seconds, and a function that runs `main.py` in-process.

The config file is tests/small_run.py.
"""

from __future__ import annotations

import csv
import itertools
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from absl import flags, logging
from ml_collections import ConfigDict
from PIL import Image

from caption_jax import errors as user_errors
from caption_jax.cli import platform_setup
from caption_jax.cli.subcommands import EPOCH_FLAGS, SERVING_FLAGS
from caption_jax.config import default_config
from caption_jax.metrics import java_metrics

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"red": (210, 30, 30), "green": (30, 170, 50), "blue": (30, 60, 200), "yellow": (230, 210, 40)}
MAIN_FLAGS = (
    *("config", "workdir", "mode", "split", "images", "context", "format", "checkpoint", "recipe"),
    *("index", "captions", "missing", "query", "top", "search", "to", "out", "push", "weights"),
    *("image_format", "jpeg_quality"),
    *(
        "topology",
        "programs",
        "phase",
        "images_per_chip",
        "vocabulary",
        "compilations",
        "data",
        "dry_run",
        "max_steps_this_run",
        "allow_data_change",
        "distributed",
        "heartbeat",
        "quiet",
        "verbose",
        *EPOCH_FLAGS,
        *SERVING_FLAGS,
        *("workers", "images_per_batch", "vectors", "alternatives", "images_per_part"),
    ),
)
SPLITS = ("train",) * 8 + ("val",) * 2 + ("test",) * 2
SIDES = ("left", "right")
SCENES = [(list(COLOURS)[number % 4], SIDES[number % 2]) for number in range(12)]
# All training images differ, so a caption identifies its image.
DISTINCT_SCENES = [*itertools.product(COLOURS, SIDES), *itertools.product(list(COLOURS)[:2], SIDES)]
# Flags that add a contrastive objective and a text encoder.
TEXT_ENCODER_FLAGS = (
    "--config.objective.contrastive_weight=1.0",
    "--config.model.text_encoder.layers=1",
    "--config.model.text_encoder.width=16",
    "--config.model.text_encoder.heads=2",
    "--config.model.text_encoder.feed_forward=32",
    "--config.model.joint_embedding.width=16",
    "--config.data.batch_size=8",
)


def get_config() -> ConfigDict:
    """Returns a config for 160 steps on the images of `write_images`, enough to learn the words of the captions."""
    config = default_config()
    config.data.source = "folder"
    config.data.image_size = 32
    config.data.vocabulary_size = 300
    config.data.max_length = 10
    config.data.captions_per_image = 2
    config.data.batch_size = 4
    config.data.eval_batch_size = 2
    config.data.workers = 1
    config.data.prefetch = 1
    shrink(config)
    config.model.encoder.norm_momentum = 0.9
    config.objective.label_smoothing = 0.0
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 5
    config.train.steps = 160
    config.train.log_every = 20
    config.train.eval_every = 160
    config.train.checkpoint_every = 30
    config.train.sample_images = 1
    config.decode.max_length = 10
    config.mesh.data = 1
    return config.lock()


def shrink(config: ConfigDict) -> None:
    """Changes a config to the smallest model, without pretrained weights."""
    config.model.encoder.variant = "micro"
    config.model.encoder.weights = ""
    config.model.decoder.layers = 1
    config.model.decoder.width = 16
    config.model.decoder.heads = 2
    config.model.decoder.feed_forward = 32


def train_two_steps(workdir: Path, **data: str | int) -> list[tuple[int, str, float]]:
    """Trains the small model for two steps, with these keys of `config.data` changed.

    Returns the step, the split and the value of each loss.
    """
    from caption_jax.specs import RunSpec
    from caption_jax.telemetry.metrics_file import read_metrics
    from caption_jax.training.loop import train_and_evaluate

    config = get_config().unlock()
    config.data.update(data)
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2
    config.train.log_every = 1
    train_and_evaluate(RunSpec.from_config(config), workdir)
    rows = read_metrics(workdir / "metrics.jsonl")
    return [(row.step, row.split, row.values["loss"]) for row in rows if "loss" in row.values]


def write_images(folder: Path, scenes: Sequence[tuple[str, str]] = SCENES) -> Path:
    """Writes twelve images, `images/00.png` to `images/11.png`, and `captions.csv` with two captions per image."""
    (folder / "images").mkdir(parents=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for number, (split, (colour, side)) in enumerate(zip(SPLITS, scenes, strict=True)):
            box_image(colour, side).save(folder / "images" / f"{number:02d}.png")
            writer.writerow([f"{number:02d}.png", f"A {colour} box on the {side}.", split])
            writer.writerow([f"{number:02d}.png", f"on the {side}, a {colour} box", split])
    return folder


def box_image(colour: str = "red", side: str = "left") -> Image.Image:
    """Returns a grey image of 48 x 36 pixels with a coloured box in its left or right half."""
    pixels = np.full((36, 48, 3), 128, np.uint8)
    pixels[6:30, slice(4, 22) if side == "left" else slice(26, 44)] = COLOURS[colour]
    return Image.fromarray(pixels)


def run_main(*arguments: str | Path, script: Path = ROOT / "main.py", reports_errors: bool = False) -> int:
    """Runs main.py in the current process, without Java metrics. Returns its exit status.

    Args:
        arguments: command-line arguments.
        script: main.py, or another script with the same command line.
        reports_errors: whether errors of the user are reported in one line, as by the command, instead of raised.
    """
    import jax  # not at the top, because this file is also a config, which is read before the platform is set up

    is_cache_enabled = jax.config.jax_enable_compilation_cache
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        if not reports_errors:
            patch.setattr(user_errors, "user_message", lambda error: None)
        # The tests simulate eight CPU devices, but the runs use one, so cached programs are safe.
        patch.setattr(platform_setup, "disable_compilation_cache", lambda: None)
        # Starting Java would take longer than the rest of a test.
        unavailable = dict.fromkeys(java_metrics.METRICS, "left out of the tests")
        patch.setattr(java_metrics, "unavailable_metrics", lambda: unavailable)
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:  # absl rejects a flag that is already defined, and config flags define one per overridden key
            for name in [name for name in flags.FLAGS if name.split(".")[0] in MAIN_FLAGS]:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            jax.config.update("jax_enable_compilation_cache", is_cache_enabled)  # `plan` disables it
            logging.set_verbosity(logging.WARNING)
    raise AssertionError("main.py ended without an exit status")
