"""Losses of a training run on one device type and in one precision, to be compared with those of the CPU.

    python -m benchmarks.accelerator.numerics --scale=full --dtype=float32 --steps=200

Trains on four fixed batches of 8 images without dropout. Prints JSON with the loss of each step. JAX_PLATFORMS=cpu
selects the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import jax

from benchmarks.accelerator.our_side import Training, make_spec
from benchmarks.accelerator.workload import SCALES, Workload

IMAGES, BATCHES = 8, 4


def compute_losses(workload: Workload, dtype: str, steps: int) -> list[float]:
    """Trains from scratch and returns the loss of each step."""
    whole = dataclasses.replace(workload, images=IMAGES * BATCHES, captions=1).make_batch()
    batches = [{key: array[index::BATCHES] for key, array in whole.items()} for index in range(BATCHES)]
    workload = dataclasses.replace(workload, images=IMAGES, captions=1)
    spec = make_spec(workload, dtype)
    decoder = dataclasses.replace(spec.model.decoder, dropout=0.0)
    optimizer = dataclasses.replace(spec.optimizer, warmup_steps=min(50, steps))
    model = dataclasses.replace(spec.model, decoder=decoder, memory_dropout=0.0)
    training = Training(workload, dataclasses.replace(spec, model=model, optimizer=optimizer), batches[0])
    placed = [training.place(batch) for batch in batches]
    return [float(training.step(placed[step % BATCHES])) for step in range(steps)]


def main() -> None:
    """Prints the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--precision", default="default", help="of matrix products: default, or highest for float32")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    with jax.default_matmul_precision(options.precision):
        losses = compute_losses(SCALES[options.scale], options.dtype, options.steps)
    print(json.dumps({"platform": jax.devices()[0].platform, "losses": losses}))


if __name__ == "__main__":
    main()
