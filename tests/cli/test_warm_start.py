"""With a warm cache, `caption` imports only what it needs to load and run a compiled program."""

from __future__ import annotations

import subprocess
import sys

from small_run import ROOT, run_main

# Tracing a model imports `flax` and most of `caption_jax.models`.
UNWANTED = {
    *("flax", "optax", "orbax", "tensorflow", "transformers", "huggingface_hub", "grain", "clu", "matplotlib", "rich"),
    *(f"caption_jax.{package}" for package in ("decoding", "evaluation", "metrics", "objectives")),
    *(f"caption_jax.{package}" for package in ("planning", "pretrained", "retrieval", "training")),
    *(f"caption_jax.telemetry.{module}" for module in ("event_files", "metrics_file", "monitoring")),
    *(f"caption_jax.models.{module}" for module in ("attention", "build", "captioning_model", "decoder", "layers")),
    *(f"caption_jax.models.{module}" for module in ("image_encoder", "joint_embedding", "roberta", "text_encoder")),
    "caption_jax.models.backbones.efficientnet",
}


def test_a_warm_caption_command_neither_traces_a_model_nor_imports_unused_modules(small_workdir, small_images, capsys):
    image = next((small_images / "images").iterdir())
    arguments = ["--mode=caption", f"--workdir={small_workdir}", str(image)]
    assert run_main(*arguments) == 0  # fills the cache
    expected = capsys.readouterr().out
    command = [sys.executable, "-X", "importtime", ROOT / "main.py", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout == expected
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if "import time:" in line}
    assert "caption_jax.runtime.cached_program" in imported
    assert not imported & UNWANTED
    light = {"caption_jax.ops.int8_product", "caption_jax.parameters.stored_dtypes"}
    assert {name for name in imported if name.startswith(("caption_jax.ops.", "caption_jax.parameters."))} == light
