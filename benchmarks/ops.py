"""CPU time of each operation in `caption_jax.ops`, compared with the reference implementation in the same file.

    python -m benchmarks.ops [--ops=dense,dropout] [--cores=2] [--rounds=5]

The shapes are those of training on Flickr8k (packed tokens, width 512) and of EfficientNet-B0 at 224 pixels. Operations
that training differentiates are timed with their gradients. Each implementation runs in a separate process. The
processes alternate; in each round, a process runs two warm-up passes and a timed one. Dropout is compared with
`jax.random.bernoulli`, as in `nn.Dropout`, because the reference implementation generates the same random bits as ours.
`dropout_16_bits` compares masks of 16 bits ("ours") and 8 bits ("reference"). The last line is JSON.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from benchmarks.alternate import alternate, compare, print_result, serve, start_sides, use_cores
from benchmarks.conditions import Conditions
from caption_jax.runtime.process import MALLOC_SETTINGS

TOKENS, WIDTH, HEADS, VOCABULARY_SIZE = 3_584, 512, 8, 10_000
IMAGES, CAPTIONS, LENGTH, MEMORY_LENGTH = 32, 5, 35, 49  # captions have at most 35 tokens, and 22 on average
IMPLEMENTATIONS = ("ours", "reference")
NAMES = (
    *("dense", "convolve", "pointwise_conv", "scaled_pointwise_conv", "depthwise_conv"),
    *("norm_activation", "stored_norm_activation"),
    *("dropout", "dropout_16_bits", "attend", "caption_attention", "memory_attention"),
    *("vocabulary_cross_entropy", "resample", "top_k"),
)


def make_array(*shape: int) -> Any:
    """Returns a random float32 array, which is the same for both implementations."""
    import numpy as np

    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make_segments() -> Any:
    """Returns the segments of 160 captions packed into one row without padding."""
    import numpy as np

    from caption_jax.ops.segments import Segments

    captions = IMAGES * CAPTIONS
    lengths = np.full(captions, TOKENS // captions) + (np.arange(captions) < TOKENS % captions)
    ids = np.repeat(np.arange(1, captions + 1, dtype=np.int32), lengths)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    return Segments.packed(ids[None], positions[None], captions, LENGTH)


def make_differentiated_functions(ops: Any) -> dict[str, tuple[Callable, tuple]]:
    """Returns the operations that are timed with their gradients, as (function, arguments) pairs.

    Each function returns one array. `dense` and `pointwise_conv` are combined with activation functions, and `dense`
    with the fast dropout for both implementations, because these affect the cost of their gradients.
    """
    import jax
    import numpy as np

    from caption_jax.ops.dropout import dropout

    head_dim = WIDTH // HEADS
    targets = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, TOKENS)
    weights, channels = np.ones(TOKENS, np.float32), (np.ones(32, np.float32),) * 3
    pixels = make_array(16, 224, 224, 3)
    norm = functools.partial(ops.norm_activation, groups=1, epsilon=1e-3, activation="swish")

    def vocabulary_loss(states, embedding, bias):
        return ops.vocabulary_cross_entropy(states, embedding, bias, targets, weights, 0.1).loss_sum

    def caption_attention(qkv):
        return ops.caption_attention(qkv, make_segments())

    def memory_attention(queries, keys, values):
        return ops.memory_attention(queries, keys, values, None, make_segments())[0]

    def feed_forward(x, expand, contract):
        hidden = jax.nn.gelu(ops.dense(x, expand))
        return ops.dense(dropout(jax.random.key(0), hidden, 0.1), contract)

    def convolve(kernel):  # pixels do not require a gradient
        return ops.convolve(pixels, kernel, stride=2, padding=((0, 1), (0, 1)))

    def expand_channels(x, kernel, scale):
        return jax.nn.swish(ops.pointwise_conv(x, kernel) * scale)

    return {
        "dense": (
            feed_forward,
            (make_array(TOKENS, WIDTH), make_array(WIDTH, 4 * WIDTH), make_array(4 * WIDTH, WIDTH)),
        ),
        "convolve": (convolve, (make_array(3, 3, 3, 32),)),
        "scaled_pointwise_conv": (
            ops.scaled_pointwise_conv,
            (make_array(16, 56, 56, 144), make_array(16, 144), make_array(144, 24)),
        ),
        "pointwise_conv": (expand_channels, (make_array(16, 28, 28, 40), make_array(40, 240), make_array(240))),
        "depthwise_conv": (ops.depthwise_conv, (make_array(16, 56, 56, 144), make_array(3, 3, 144))),
        "norm_activation": (lambda *arrays: norm(*arrays)[0], (make_array(16, 112, 112, 32), *channels)),
        "caption_attention": (caption_attention, (make_array(TOKENS, 3, HEADS, head_dim),)),
        "memory_attention": (
            memory_attention,
            (
                make_array(TOKENS, HEADS, head_dim),
                make_array(IMAGES, HEADS, head_dim, MEMORY_LENGTH),
                make_array(IMAGES, HEADS, MEMORY_LENGTH, head_dim),
            ),
        ),
        "vocabulary_cross_entropy": (
            vocabulary_loss,
            (make_array(TOKENS, WIDTH), make_array(VOCABULARY_SIZE, WIDTH), make_array(VOCABULARY_SIZE)),
        ),
    }


def make_forward_functions(ops: Any, implementation: str) -> dict[str, tuple[Callable, tuple]]:
    """Returns the operations that are timed without gradients, as (function, arguments) pairs.

    Operations of a decoding step are executed 20 times per pass.
    """
    import jax
    import jax.numpy as jnp

    key, fractions = jax.random.key(0), (jnp.full(IMAGES, 0.1), jnp.full(IMAGES, 0.7))
    channels = [jnp.full(32, value) for value in (0.0, 1.0, 1.0, 0.0)]

    def stored_norm(x):
        return ops.stored_norm_activation(x, *channels, 1e-3, "swish")

    def dropout(x):
        if implementation == "ours":
            return ops.dropout(key, x, 0.1)
        return jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0)

    def top_k(values):
        return jax.lax.fori_loop(0, 20, lambda _, x: x.at[:, 0].add(ops.top_k(x, 5)[0].sum(-1)), values)

    def attend(queries, keys, values):
        def step(_, queries):
            return ops.attend(queries, keys, values, None, decoding=True)[0].reshape(queries.shape)

        return jax.lax.fori_loop(0, 20, step, queries)

    def dropout_with_bits(x):
        return ops.dropout(key, x, 0.1, None, 16 if implementation == "ours" else 8)

    states = make_array(TOKENS, 4 * WIDTH)
    return {
        "stored_norm_activation": (stored_norm, (make_array(16, 112, 112, 32),)),
        "dropout": (dropout, (states,)),
        "dropout_16_bits": (dropout_with_bits, (states,)),
        "attend": (
            attend,
            (make_array(16, 5, HEADS, 64), make_array(16, HEADS, 64, 100), make_array(16, HEADS, 100, 64)),
        ),
        "resample": (lambda pixels: ops.resample(pixels, fractions, fractions), (make_array(IMAGES, 224, 224, 3),)),
        "top_k": (top_k, (make_array(80, VOCABULARY_SIZE),)),
    }


def make_pass(name: str, implementation: str) -> Callable[[], Any]:
    """Returns a function that runs one pass of the named operation, compiled."""
    from caption_jax.runtime.process import set_up_process

    set_up_process()  # like main.py; the environment of this process contains MALLOC_SETTINGS
    import jax
    import jax.numpy as jnp

    from caption_jax.ops.implementations import FAST, REFERENCE

    ops = FAST if implementation == "ours" or name.startswith("dropout") else REFERENCE
    differentiated = make_differentiated_functions(ops)
    function, arrays = differentiated.get(name) or make_forward_functions(ops, implementation)[name]
    arrays = jax.device_put(arrays)
    if name in differentiated:
        cotangent = jax.device_put(make_array(*jax.eval_shape(function, *arrays).shape))
        argnums = tuple(range(len(arrays)))
        run = jax.jit(jax.value_and_grad(lambda *arrays: jnp.vdot(function(*arrays), cotangent), argnums))
    else:
        run = jax.jit(function)
    return lambda: jax.block_until_ready(run(*arrays))


def main() -> None:
    """Runs the benchmark, or one implementation of an operation as a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", default=",".join(NAMES))
    parser.add_argument("--cores", type=int, default=2, help="number of cores that each process may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, metavar=("OP", "IMPLEMENTATION"), help="run as a child process")
    options = parser.parse_args()
    if options.serve:
        use_cores(options.cores)
        serve(make_pass(*options.serve), untimed_runs=2)
        return
    conditions, comparisons = Conditions(options.cores), {}
    for name in options.ops.split(","):
        commands = {
            implementation: (
                ["benchmarks.ops", f"--cores={options.cores}", "--serve", name, implementation],
                MALLOC_SETTINGS,
            )
            for implementation in IMPLEMENTATIONS
        }
        with start_sides(commands) as sides:
            seconds = alternate(sides, options.rounds, conditions)
        comparisons[name] = compare(seconds, 1)["reference"]
        for clock, ratio in (("cpu", comparisons[name]["cpu_ratio"]), ("wall", comparisons[name]["ratio"])):
            ours, reference = (1e3 * getattr(seconds[implementation], clock) for implementation in IMPLEMENTATIONS)
            times = f"{clock:4} time {ours:8.1f} ms, reference {reference:8.1f} ms"
            print(f"{name:24} {times}, ratio {ratio:.2f}", flush=True)
    print_result("ops", comparisons, "passes/s", conditions)


if __name__ == "__main__":
    main()
