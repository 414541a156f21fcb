"""Peak FLOP/s of the machine in matrix products, measured in the same rounds as the sides of a benchmark.

The FLOP utilisation of a model is its FLOP/s divided by this peak, so it says how much faster the model could become.
The peak is that of a product of square float32 matrices by NumPy or jnp, whichever is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.alternate import Command, Seconds, serve, use_cores
from caption_jax.runtime.process import MALLOC_SETTINGS, set_up_process

MATRIX_SIZE = 2048
LIBRARIES = ("numpy", "jnp")
_PREFIX = "product_"


def make_matrix_product(library: str) -> Callable[[], Any]:
    """Returns a function that multiplies two square matrices, which are large enough to reach peak FLOP/s.

    Args:
        library: "numpy" or "jnp".
    """
    import numpy as np

    a, b = np.random.default_rng(0).normal(size=(2, MATRIX_SIZE, MATRIX_SIZE)).astype(np.float32)
    if library == "numpy":
        return lambda: a @ b
    import jax
    import jax.numpy as jnp

    product, x, y = jax.jit(jnp.matmul), jnp.asarray(a), jnp.asarray(b)
    return lambda: product(x, y).block_until_ready()


def make_product_commands(cores: int | None = None) -> dict[str, Command]:
    """Returns the commands of the sides that multiply matrices, to be started with the other sides of a benchmark.

    Args:
        cores: Number of cores that each of them may use. All if None.
    """
    cores_flag = [f"--cores={cores}"] if cores else []
    environment = {"JAX_PLATFORMS": "cpu", **MALLOC_SETTINGS}
    return {
        f"{_PREFIX}{library}": (["benchmarks.peak", f"--library={library}", *cores_flag], environment)
        for library in LIBRARIES
    }


def split_peak(seconds: Mapping[str, Seconds], clock: str = "wall") -> tuple[dict[str, Seconds], float]:
    """Separates the sides of a benchmark from those that multiply matrices.

    Args:
        seconds: Median times of all sides.
        clock: "wall" or "cpu".

    Returns:
        The times of the other sides, and the peak in FLOP/s.
    """
    products = [getattr(elapsed, clock) for name, elapsed in seconds.items() if name.startswith(_PREFIX)]
    others = {name: elapsed for name, elapsed in seconds.items() if not name.startswith(_PREFIX)}
    return others, 2 * MATRIX_SIZE**3 / min(products)


def print_utilisation(label: str, flops: float, seconds: float, peak: float) -> float:
    """Prints and returns the FLOP utilisation of our side.

    Args:
        label: Name of the cell.
        flops: Useful FLOPs of a run.
        seconds: Time of a run.
        peak: Peak FLOP/s.
    """
    rate = flops / seconds
    print(
        f"{label}: ours {flops / 1e9:.2f} useful GFLOP in {1e3 * seconds:.1f} ms, {rate / 1e9:.0f} GFLOP/s of a peak "
        f"of {peak / 1e9:.0f}; utilisation {rate / peak:.3f}",
        flush=True,
    )
    return rate / peak


def main() -> None:
    """Serves a matrix product as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--cores", type=int, default=0, help="number of cores that the product may use; 0 for all")
    options = parser.parse_args()
    if options.cores:
        use_cores(options.cores)
    set_up_process()
    serve(make_matrix_product(options.library), untimed_runs=5)  # models multiply matrices without pauses, too


if __name__ == "__main__":
    main()
