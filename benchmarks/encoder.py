"""Images per second of the image encoder's forward pass on a CPU, compared with PyTorch and with Keras on JAX.

    python -m benchmarks.encoder [--batches=1,16] [--peers=torch,torch_compile,keras_jax] [--cores=2]

The encoder is EfficientNet-B0 without its classifier, at 224 pixels, with stored batch norm statistics, in float32.
Each implementation runs in a separate process. The processes alternate; in each round, a process runs five warm-up
passes and a timed one. Requires the bench extra. The last line is JSON, and `ratio` is the lowest of all comparisons.

`utilisation` is our FLOP/s divided by the peak of matrix products, which is measured in the same rounds. The FLOPs are
those of all convolutions, depthwise ones included, and of the matrix products of squeeze-and-excitation.
"""

from __future__ import annotations

import argparse
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

MODEL_OPTIONS = {"padding": "symmetric", "norm_epsilon": 1e-5}  # like torchvision's


def make_forward_pass(batch: int) -> Callable[[], Any]:
    """Returns a function that runs the forward pass of our encoder."""
    from caption_jax.runtime.process import set_up_process

    set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
    import jax
    import numpy as np

    from caption_jax.models.backbones.efficientnet import EfficientNet

    model = EfficientNet("b0", **MODEL_OPTIONS)
    images = jax.device_put(np.random.default_rng(0).normal(size=(batch, 224, 224, 3)).astype(np.float32))
    variables = jax.jit(lambda key: model.init(key, images[:1], train=False))(jax.random.key(0))
    forward = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    return lambda: jax.block_until_ready(forward(variables, images))


def count_flops(batch: int) -> int:
    """Returns the FLOPs of the convolutions and matrix products of a forward pass, without running it."""
    import jax
    import jax.numpy as jnp

    from caption_jax.models.backbones.efficientnet import EfficientNet
    from caption_jax.planning.flops import count_matrix_flops

    model, images = EfficientNet("b0", **MODEL_OPTIONS), jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    return count_matrix_flops(lambda *arrays: model.apply(*arrays, train=False), variables, images).forward


def make_commands(batch: int, cores: int, peers: list[str]) -> dict[str, Command]:
    """Returns the commands that start our implementation, the requested peers and the matrix products."""
    cores_flag = f"--cores={cores}"
    peer_flags = [cores_flag, "--workload=encoder", f"--batch={batch}"]
    commands = {
        "torch": (["benchmarks.peers.torch_captioner", *peer_flags], {}),
        "torch_compile": (["benchmarks.peers.torch_captioner", *peer_flags, "--compile=1"], {}),
        "keras_jax": (["benchmarks.peers.keras_captioner", *peer_flags], {"KERAS_BACKEND": "jax"}),
    }
    ours = ["benchmarks.encoder", f"--serve={batch}", cores_flag]
    return {"ours": (ours, MALLOC_SETTINGS), **{name: commands[name] for name in peers}, **make_product_commands(cores)}


def main() -> None:
    """Runs the benchmark, or our implementation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--peers", default="torch,torch_compile,keras_jax")
    parser.add_argument("--cores", type=int, default=2, help="number of cores that each process may use")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", type=int, default=0, help="run as a child process, with this batch size")
    options = parser.parse_args()
    if options.serve:
        use_cores(options.cores)
        serve(make_forward_pass(options.serve), untimed_runs=5)
        return
    use_cpu()
    conditions, comparisons = Conditions(options.cores), {}
    for batch in map(int, options.batches.split(",")):
        flops = count_flops(batch)
        with start_sides(make_commands(batch, options.cores, options.peers.split(","))) as sides:
            seconds, peak = split_peak(alternate(sides, options.rounds, conditions))
        print_times(seconds, batch, "images/s", f"batch {batch:2}, ")
        utilisation = print_utilisation(f"batch {batch:2}", flops, seconds["ours"].wall, peak)
        for name, comparison in compare(seconds, batch).items():
            comparisons[f"batch {batch}, {name}"] = {**comparison, "utilisation": utilisation}
    print_result("encoder", comparisons, "images/s", conditions)


if __name__ == "__main__":
    main()
