"""Our implementation, as a child process of a cell.

    python -m benchmarks.accelerator.our_side --task=train --scale=full --dtype=bfloat16 --statistics=FILE

`main` of the accelerator benchmark controls it via standard input; see `benchmarks.alternate.serve`. Before the first
run, statistics of the compiled program are written to FILE as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.workload import SCALES, Workload
from benchmarks.alternate import serve
from caption_jax.backbones.efficientnet_backbone import EfficientNetBackbone
from caption_jax.decoding import beam_search, greedy
from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from caption_jax.parameters.sharding import make_mesh
from caption_jax.planning.hlo import CompiledText
from caption_jax.planning.matrix_products import matrix_flops
from caption_jax.runs.description import ModelSettings, RunDescription
from caption_jax.runs.initial_variables import init_variables
from caption_jax.specs import DataSpec, DecoderSpec, MeshSpec, ModelSpec, OptimizerSpec, RunSpec, TrainSpec
from caption_jax.training.batch_placer import list_block_lengths, make_batch_placer
from caption_jax.training.program import make_program
from input_pipeline.block_layout import BlockLayout, choose_layout
from input_pipeline.images import Preprocessing
from input_pipeline.special_tokens import EOS, PAD

BACKBONE = {"padding": "symmetric", "norm_epsilon": 1e-5}  # as in PyTorch


def make_spec(workload: Workload, dtype: str, packing: str = "never", ops: str = "fast") -> RunSpec:
    """Returns the spec of a run that trains all parameters on one device, without augmentation."""
    decoder = DecoderSpec(
        layers=workload.layers, width=workload.width, heads=workload.heads, feed_forward=workload.feed_forward
    )
    return RunSpec(
        dtype=dtype,
        data=DataSpec(image_size=workload.image_size, batch_size=workload.images, max_length=workload.length),
        model=ModelSpec(ops=ops, encoder=EfficientNetBackbone(workload.variant), decoder=decoder),
        optimizer=OptimizerSpec(warmup_steps=100),
        train=TrainSpec(packing=packing),
        mesh=MeshSpec(data=1, model=1),
    )


class Training:
    """The program that a run compiles, and a batch on the device."""

    def __init__(self, workload: Workload, spec: RunSpec, batch: dict[str, np.ndarray]):
        settings = ModelSettings(workload.vocabulary_size, workload.length, BACKBONE)
        # No text is encoded, so the description needs no vocabulary.
        description = RunDescription(spec, settings, Preprocessing(workload.image_size), vocabulary=None)
        mesh = make_mesh(spec.mesh)
        self.program = make_program(description, mesh, steps=10_000)
        layout = fit_blocks(spec, mesh, batch) if spec.train.packing == "blocks" else None
        self.place = make_batch_placer(spec, mesh, layout)
        self.batch = self.place(batch)
        self.state = self.program.start(init_variables(description))
        self.lowered = self.program.update(frozenset()).lower(self.state, self.batch, self.program.constants)
        self.compiled = self.lowered.compile()

    def step(self, batch: dict[str, jax.Array] | None = None) -> jax.Array:
        """Performs one update and returns the loss, without waiting for it to be computed."""
        self.state, metrics = self.compiled(self.state, batch or self.batch, self.program.constants)
        return metrics["loss"]


def fit_blocks(spec: RunSpec, mesh: jax.sharding.Mesh, batch: dict[str, np.ndarray]) -> BlockLayout:
    """Returns the blocks that a run would choose if all of its batches were this one."""
    tokens = (batch["tokens"][..., 1:] != PAD).sum((1, 2))
    lengths = list_block_lengths(spec, mesh, int(tokens.max()))
    return choose_layout(tokens, [np.arange(len(tokens))], len(tokens), lengths)


def make_train_run(workload: Workload, options: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a function that performs `workload.steps` updates, and statistics of the program."""
    spec = make_spec(workload, options.dtype, options.packing, options.ops)
    training = Training(workload, spec, workload.make_batch())

    def run() -> float:
        for _ in range(workload.steps):
            loss = training.step()
        return float(loss)

    return run, describe_program(training.lowered, training.compiled)


def make_encoder_run(workload: Workload, options: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a function that runs the encoder `workload.steps` times, and statistics of the program."""
    dtype = jnp.dtype(options.dtype)
    model = EfficientNet(workload.variant, dtype=dtype, **BACKBONE)
    shape = workload.images, workload.image_size, workload.image_size, 3
    images = jax.device_put(np.random.default_rng(0).normal(size=shape).astype(dtype))
    variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(0))
    lowered = jax.jit(lambda variables, images: model.apply(variables, images, train=False)).lower(variables, images)
    compiled = lowered.compile()

    def run() -> None:
        for _ in range(workload.steps):
            features = compiled(variables, images)
        jax.block_until_ready(features)

    return run, describe_program(lowered, compiled)


def make_decode_run(workload: Workload, options: argparse.Namespace) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Returns a function that captions one batch, and statistics of the program.

    The weights are random and never produce </s>, so every step is executed.
    """
    dtype = jnp.dtype(options.dtype)
    length = workload.decoded_tokens + 1
    decoder = Decoder(
        workload.vocabulary_size,
        workload.layers,
        workload.width,
        workload.heads,
        workload.feed_forward,
        max_length=length,
        dtype=dtype,
    )
    encoder = ImageEncoder(EfficientNet(workload.variant), width=workload.width, dtype=dtype)
    model = ImageCaptioningModel(encoder, decoder)
    memory = jnp.asarray(workload.make_memory(), dtype)
    tokens = jnp.zeros((1, 1, workload.decoded_tokens), jnp.int32)
    variables = jax.jit(lambda key: model.init(key, tokens, memory[:1], method="decode"))(jax.random.key(0))
    bias = variables["params"]["decoder"]["output_bias"]
    variables["params"]["decoder"]["output_bias"] = bias.at[EOS].set(-1e4)

    def decode(variables: Any, memory: jax.Array) -> jax.Array:
        if options.task == "greedy":
            return greedy(model, variables, memory, max_length=length).tokens
        return beam_search(model, variables, memory, max_length=length, num_beams=workload.beams).tokens

    lowered = jax.jit(decode).lower(variables, memory)
    compiled = lowered.compile()

    def run() -> np.ndarray:
        return np.asarray(compiled(variables, memory))

    if run().shape != (workload.decoded_images, workload.decoded_tokens):
        raise AssertionError(f"captions have shape {run().shape}")
    return run, describe_program(lowered, compiled)


def describe_program(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns the device, and the cost of a program as estimated by the compiler."""
    memory, device = compiled.memory_analysis(), jax.devices()[0]
    analysis = compiled.cost_analysis() or {}
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        # The body of a loop is counted once, so these are too low for decoding.
        "matrix_flops": matrix_flops(CompiledText(lowered.as_text("hlo"))),
        "bytes_accessed": analysis.get("bytes accessed", 0.0),
    }


TASKS = {
    "train": make_train_run,
    "encoder": make_encoder_run,
    "greedy": make_decode_run,
    "beam": make_decode_run,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select a program."""
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--packing", choices=["never", "always", "blocks"], default="never")
    parser.add_argument("--ops", choices=["fast", "reference"], default="fast")


def main() -> None:
    """Serves the selected task as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_flags(parser)
    parser.add_argument("--statistics", type=Path, required=True)
    options = parser.parse_args()
    run, statistics = TASKS[options.task](SCALES[options.scale], options)
    options.statistics.write_text(json.dumps(statistics))
    serve(run)


if __name__ == "__main__":
    main()
