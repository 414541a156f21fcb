"""Captions per second with weights in int8 and in bfloat16, compared with float32, on a CPU.

    python -m benchmarks.quantized [--sizes=flickr8k] [--batches=1,16] [--parts=captioning,decoding] [--rounds=5]

The peer is the same model with float32 weights. All sides caption the same batch greedily, with random weights that
never produce </s>, so every step of 20 tokens is executed. `captioning` encodes the pixels as well; `decoding` starts
from encoded images. Weights that are not float32 are converted in the program (`caption_jax.parameters.stored_dtypes`),
once per batch. Each side runs in a separate process with the settings of main.py. The processes alternate; in each
round, a process computes the batch twice and the second pass is timed.

The last line is JSON, and `ratio` is the lowest of all cells of int8. A cell contains the ratios of wall time (`ratio`)
and of CPU time (`cpu_ratio`), and `file_ratio`, the size of model.safetensors divided by that in float32.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.alternate import Command, alternate, compare, print_result, print_times, serve, start_sides, use_cpu
from benchmarks.conditions import Conditions
from benchmarks.decode_workload import SIZES, Workload, make_memory
from caption_jax.runtime.process import MALLOC_SETTINGS, set_up_process

DTYPES = ("float32", "int8", "bfloat16")
TOKENS, IMAGE_SIZE = 20, 224


def make_variables(name: str) -> tuple[Any, dict[str, Any]]:
    """Returns a model of random weights that never produces </s>, and its variables as NumPy arrays."""
    import jax

    from caption_jax.models.backbones.efficientnet import EfficientNet
    from caption_jax.models.captioning_model import ImageCaptioningModel
    from caption_jax.models.decoder import Decoder
    from caption_jax.models.image_encoder import ImageEncoder
    from input_pipeline.special_tokens import EOS

    size = SIZES[name]
    decoder = Decoder(
        size.vocabulary_size, size.layers, size.width, size.heads, size.feed_forward, max_length=TOKENS + 1
    )
    model = ImageCaptioningModel(ImageEncoder(EfficientNet(size.variant), width=size.width), decoder)
    images, tokens = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32), np.zeros((1, 1, TOKENS), np.int32)
    shapes, rng = jax.eval_shape(model.init, jax.random.key(0), images, tokens), np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if name == "kernel" else 100
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    variables = jax.tree.map_with_path(draw, dict(shapes))
    variables["params"]["decoder"]["output_bias"][EOS] = -1e4
    return model, variables


def make_function(name: str, part: str, batch: int, dtype: str) -> Callable[[], np.ndarray]:
    """Returns a function that captions a batch with weights of a dtype.

    Args:
        name: model size.
        part: "captioning" or "decoding".
        batch: number of images.
        dtype: dtype of the weights.
    """
    import jax

    from caption_jax.decoding.greedy import greedy
    from caption_jax.parameters.stored_dtypes import convert_weights, restore

    model, variables = make_variables(name)
    variables = jax.device_put(convert_weights(variables, dtype))
    if part == "decoding":
        inputs = make_memory(SIZES[name], Workload(batch, 1, TOKENS))
    else:
        inputs = np.random.default_rng(0).normal(size=(batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)

    @jax.jit
    def generate(variables: Any, inputs: jax.Array) -> jax.Array:
        variables = restore(variables)
        if part == "captioning":
            inputs = model.apply(variables, inputs, train=False, method="encode_images")
        return greedy(model, variables, inputs, max_length=TOKENS + 1).tokens

    return lambda: np.asarray(generate(variables, inputs))


def measure_files(name: str) -> dict[str, int]:
    """Returns the size of model.safetensors in bytes by dtype."""
    from caption_jax.parameters.stored_dtypes import convert_weights
    from caption_jax.runs.weights import to_safetensors

    _, variables = make_variables(name)
    return {dtype: len(to_safetensors(convert_weights(variables, dtype))) for dtype in DTYPES}


def measure(name: str, part: str, batch: int, rounds: int, conditions: Conditions) -> dict[str, dict[str, float]]:
    """Prints and returns the comparisons of a batch size, by dtype."""
    flags = [f"--sizes={name}", f"--parts={part}", f"--batches={batch}"]
    commands: dict[str, Command] = {
        dtype: (["benchmarks.quantized", f"--serve={dtype}", *flags], MALLOC_SETTINGS) for dtype in DTYPES
    }
    with start_sides(commands) as sides:
        seconds = alternate(sides, rounds, conditions)
    print_times(seconds, batch, "captions/s", f"{name}, {part}, batch {batch}, ")
    pairs = {dtype: {"ours": seconds[dtype], "peer": seconds["float32"]} for dtype in DTYPES[1:]}
    return {dtype: compare(pair, batch)["peer"] for dtype, pair in pairs.items()}


def main() -> None:
    """Runs the benchmark, or one side as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="flickr8k", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--parts", default="captioning,decoding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", default="", choices=["", *DTYPES], help="run as the child process of a dtype")
    options = parser.parse_args()
    names, batches, parts = options.sizes.split(","), options.batches.split(","), options.parts.split(",")
    if options.serve:
        set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
        serve(make_function(names[0], parts[0], int(batches[0]), options.serve), untimed_runs=1)
        return
    use_cpu()
    conditions, cells = Conditions(), {dtype: {} for dtype in DTYPES[1:]}
    for name in names:
        files = measure_files(name)
        print(f"{name}: bytes of model.safetensors {json.dumps(files)}", flush=True)
        for part in parts:
            for batch in map(int, batches):
                for dtype, cell in measure(name, part, batch, options.rounds, conditions).items():
                    file_ratio = files[dtype] / files["float32"]
                    cells[dtype][f"{name}, {dtype}, {part}, batch {batch}"] = {**cell, "file_ratio": file_ratio}
    for label, cell in cells["bfloat16"].items():
        print(f"{label}: ratio {cell['ratio']:.2f}, CPU time {cell['cpu_ratio']:.2f}", flush=True)
    print_result("quantized", cells["int8"], "captions/s", conditions)


if __name__ == "__main__":
    main()
