"""Measured limits of the device: matrix products, memory bandwidth, and transfers between host and device.

    python -m benchmarks.accelerator.ceilings --scale=full

Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.workload import SCALES, Workload

REPEATS = 7


def time_run(function: Callable[[], Any], calls: int) -> float:
    """Returns the median seconds per call over several runs of `calls` calls, after two warm-up calls."""
    jax.block_until_ready([function(), function()])
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / calls)
    return statistics.median(seconds)


def measure_matmul(size: int, dtype: str, precision: str = "default") -> float:
    """Returns FLOP/s of a product of two random square matrices."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), jnp.float32).astype(dtype) for key in keys)
    product = jax.jit(lambda left, right: jnp.matmul(left, right, precision=precision))
    return 2 * size**3 / time_run(lambda: product(left, right), 10)


def measure_bandwidth(elements: int) -> float:
    """Returns the memory bandwidth in bytes per second, read plus written, when negating a large array."""
    array = jax.random.normal(jax.random.key(0), (elements,), jnp.float32)
    negate = jax.jit(jnp.negative)
    return 2 * array.nbytes / time_run(lambda: negate(array), 10)


def measure_transfers(workload: Workload) -> dict[str, float]:
    """Returns the bandwidth of copying images to the device and back, and the round-trip latency of a scalar."""
    images = workload.make_batch()["image"]
    increment = jax.jit(lambda array: array + 1)
    arrays = iter([increment(jax.device_put(images)) for _ in range(REPEATS + 2)])
    jax.block_until_ready(increment(jax.device_put(images)))
    to_host = []
    for _ in range(REPEATS):
        array = jax.block_until_ready(next(arrays))  # a new array each time, because the host copy is cached
        start = time.perf_counter()
        np.asarray(array)
        to_host.append(time.perf_counter() - start)
    scalar = jnp.zeros(())
    round_trip = time_run(lambda: float(increment(scalar)), 50)
    return {
        "to_device_bytes_per_second": images.nbytes / time_run(lambda: jax.device_put(images), 5),
        "to_host_bytes_per_second": images.nbytes / statistics.median(to_host),
        "round_trip_seconds": round_trip,
    }


def main() -> None:
    """Measures the ceilings and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    options = parser.parse_args()
    matrix, elements = (8192, 2**28) if options.scale == "full" else (256, 2**20)
    device = jax.devices()[0]
    result = {
        "device": device.device_kind,
        "platform": device.platform,
        "jax": jax.__version__,
        "bfloat16_flops_per_second": measure_matmul(matrix, "bfloat16"),
        "float32_flops_per_second": measure_matmul(matrix, "float32"),  # TF32 on a GPU
        "float32_highest_flops_per_second": measure_matmul(matrix, "float32", "highest"),
        "bytes_per_second": measure_bandwidth(elements),
        **measure_transfers(SCALES[options.scale]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
