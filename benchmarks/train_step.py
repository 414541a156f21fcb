"""Images per second of a full fine-tuning step on a CPU, compared with PyTorch and with Keras on JAX.

    python -m benchmarks.train_step [--batch=16] [--peers=torch,torch_compile,keras_jax] [--cores=2] [--dtype=float32]

The model is that of `configs/coco.py`: EfficientNet-B0 at 224 pixels, and 6 decoder layers of width 512. A step trains
all parameters on random pixels and tokens, with one caption of 40 tokens per image and a vocabulary of
10,000. It includes batch statistics in batch norm, dropout, label smoothing, gradient clipping and AdamW, but neither
augmentation nor averaged weights. Our implementation is the program that a run compiles
(`caption_jax.training.program`). With `--dtype=bfloat16`, it has `config.dtype="bfloat16"`, and the peers use their
automatic mixed precision. Each implementation runs in a separate process. The processes alternate; in each
round, a process runs a warm-up step and a timed one. Requires the bench extra. The last line is JSON, and its `ratio`
is our speed divided by that of the fastest peer.

`utilisation` is our FLOP/s divided by the peak of matrix products, which is measured in the same rounds. The FLOPs are
those of all convolutions and matrix products of the forward pass, masked keys included, and again as many for each
operand with a gradient.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

from benchmarks.alternate import (
    Command,
    alternate,
    compare,
    print_result,
    print_times,
    serve,
    start_sides,
    use_cores,
    use_cpu,
)
from benchmarks.conditions import Conditions
from benchmarks.peak import make_product_commands, print_utilisation, split_peak
from caption_jax.runtime.process import MALLOC_SETTINGS

VOCABULARY_SIZE, LENGTH = 10_000, 40


def make_training_program(dtype: str = "float32") -> Any:
    """Returns the program of a run whose model has the dimensions of `configs/coco.py`."""
    from caption_jax.config import default_config
    from caption_jax.parameters.sharding import make_mesh
    from caption_jax.runs.description import ModelSettings, RunDescription
    from caption_jax.specs import RunSpec, replace_values
    from caption_jax.training.program import make_program
    from input_pipeline.images import Preprocessing

    # The model has the dimensions of configs/coco.py by default.
    spec = replace_values(RunSpec.from_config(default_config()), {"optimizer.warmup_steps": 100})
    spec = dataclasses.replace(spec, dtype=dtype)
    settings = ModelSettings(VOCABULARY_SIZE, LENGTH, {"padding": "symmetric", "norm_epsilon": 1e-5})
    # No vocabulary is required, because no text is encoded.
    description = RunDescription(spec, settings, Preprocessing(224), vocabulary=None)
    return make_program(description, make_mesh(spec.mesh), steps=10_000)


def make_batch(batch: int) -> dict[str, Any]:
    """Returns random pixels, and one caption without padding per image."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, 224, 224, 3), np.uint8),
        "tokens": rng.integers(3, VOCABULARY_SIZE, (batch, 1, LENGTH), np.int32),
        "mask": np.ones(batch, bool),
    }


def make_step(batch: int, dtype: str) -> Callable[[], Any]:
    """Returns a function that performs one update on random data, with the program that a run compiles."""
    from caption_jax.runtime.process import set_up_process

    set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
    import jax

    from caption_jax.parameters.sharding import put_batch
    from caption_jax.runs.initial_variables import init_variables

    program = make_training_program(dtype)
    state, update = program.start(init_variables(program.description)), program.update(frozenset())
    device_arrays = put_batch(make_batch(batch), program.mesh)

    def step() -> float:
        nonlocal state
        state, metrics = update(state, device_arrays, program.constants)
        return float(jax.block_until_ready(metrics)["loss"])

    return step


def count_flops(batch: int) -> int:
    """Returns the FLOPs of the convolutions and matrix products of a step, without running it."""
    import jax

    from caption_jax.planning.flops import count_matrix_flops
    from caption_jax.training.step import FixedInputs, Microbatch, split_params

    program = make_training_program()
    step = dataclasses.replace(program.uncompiled_step(frozenset()), mesh=None)

    def forward(trainable: Any, frozen: Any, batch_stats: Any, constants: Any, arrays: dict[str, Any]) -> Any:
        fixed, microbatch = FixedInputs(frozen, constants), Microbatch(arrays, 0, jax.random.key(0))
        return step.objective_outputs(trainable, fixed, batch_stats, microbatch)[0]

    params = split_params(program.abstract_state.params, frozenset())
    return count_matrix_flops(
        forward, *params, program.abstract_state.batch_stats, program.constants, make_batch(batch)
    ).total


def make_commands(batch: int, cores: int, dtype: str, peers: list[str]) -> dict[str, Command]:
    """Returns the commands that start our implementation, the requested peers and the matrix products."""
    common = [f"--batch={batch}", f"--cores={cores}", f"--dtype={dtype}"]
    peer_flags = [*common, "--workload=train_step", f"--vocabulary={VOCABULARY_SIZE}", f"--length={LENGTH}"]
    commands = {
        "torch": (["benchmarks.peers.torch_captioner", *peer_flags], {}),
        "torch_compile": (["benchmarks.peers.torch_captioner", *peer_flags, "--compile=1"], {}),
        "keras_jax": (["benchmarks.peers.keras_captioner", *peer_flags], {"KERAS_BACKEND": "jax"}),
    }
    return {
        "ours": (["benchmarks.train_step", "--serve", *common], MALLOC_SETTINGS),
        **{name: commands[name] for name in peers},
        **make_product_commands(cores),
    }


def main() -> None:
    """Runs the benchmark, or our implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peers", default="torch,torch_compile,keras_jax")
    parser.add_argument("--cores", type=int, default=2, help="number of cores that each process may use")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help="run as a child process")
    options = parser.parse_args()
    if options.serve:
        use_cores(options.cores)
        serve(make_step(options.batch, options.dtype), untimed_runs=1)
        return
    use_cpu()
    conditions, flops = Conditions(options.cores), count_flops(options.batch)
    commands = make_commands(options.batch, options.cores, options.dtype, options.peers.split(","))
    with start_sides(commands) as sides:
        seconds, peak = split_peak(alternate(sides, options.rounds, conditions))
    print_times(seconds, options.batch, "images/s")
    utilisation = print_utilisation(f"batch {options.batch}", flops, seconds["ours"].wall, peak)
    comparisons = {
        name: {**comparison, "utilisation": utilisation} for name, comparison in compare(seconds, options.batch).items()
    }
    print_result("train_step", comparisons, "images/s", conditions)


if __name__ == "__main__":
    main()
