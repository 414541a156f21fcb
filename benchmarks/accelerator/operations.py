"""Times of alternative implementations of single operations of the training step, in bfloat16.

    python -m benchmarks.accelerator.operations --scale=full

Prints JSON with the milliseconds of each alternative, which show what `caption_jax/ops` should run on this device.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.ceilings import time_run
from benchmarks.accelerator.workload import SCALES, Workload
from caption_jax.ops import cross_entropy, depthwise
from caption_jax.ops.attend import attend
from caption_jax.ops.dropout import dropout
from caption_jax.ops.token_chunks import TokenChunks

# Depthwise convolutions of EfficientNet-B0 at 224 pixels: (size, channels, kernel, stride).
CONVOLUTIONS = ((112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (56, 144, 5, 2), (28, 240, 5, 1), (14, 480, 3, 1))
CHUNKS = (640, 2560, 8320)  # tokens


def measure(function: Callable, *arguments: Any) -> float | str:
    """Returns the time of a jitted function in milliseconds, or the reason why it cannot run."""
    jitted = jax.jit(function)
    try:
        return round(1e3 * time_run(lambda: jitted(*arguments), 5), 4)
    except (ValueError, NotImplementedError, RuntimeError) as error:  # not implemented on this device
        return str(error).splitlines()[0]


def make_arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Returns random bfloat16 arrays."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


def compare_convolutions(images: int, size: int, channels: int, kernel: int, stride: int) -> dict[str, float | str]:
    """Compares grouped convolutions with sums of shifted images, for the forward pass and both gradients."""
    x, weights = make_arrays((images, size, size, channels), (kernel, kernel, channels))
    pads = depthwise.explicit_padding(size, size, kernel, stride, "symmetric")
    conv = functools.partial(depthwise._grouped_conv, stride=stride, pads=pads)
    gradient = jax.jit(conv)(x, weights)

    shifted_gradients = functools.partial(depthwise._compute_shifted_gradients, stride=stride, pads=pads)

    return {
        "grouped": measure(conv, x, weights),
        "shifted": measure(functools.partial(depthwise._shifted_conv, stride=stride, pads=pads), x, weights),
        "grouped, gradient of images": measure(
            lambda x, weights, gradient: jax.vjp(lambda x: conv(x, weights), x)[1](gradient), x, weights, gradient
        ),
        "shifted, gradient of images": measure(lambda *arrays: shifted_gradients(*arrays)[0], x, weights, gradient),
        "grouped, gradient of kernel": measure(
            lambda x, weights, gradient: jax.vjp(lambda w: conv(x, w), weights)[1](gradient), x, weights, gradient
        ),
        "shifted, gradient of kernel": measure(lambda *arrays: shifted_gradients(*arrays)[1], x, weights, gradient),
    }


def compare_losses(workload: Workload) -> dict[str, float | str]:
    """Compares computing the loss from all logits at once with computing it in chunks of tokens, with gradients.

    "reference" also computes all logits at once, but JAX derives its gradients.
    """
    shape = workload.images, workload.captions, workload.length - 1
    states, embedding = make_arrays((*shape, workload.width), (workload.vocabulary_size, workload.width))
    arguments = states, embedding, jnp.zeros(workload.vocabulary_size), jnp.ones(shape, jnp.int32), jnp.ones(shape)

    def compute_reference(*arrays: jax.Array) -> jax.Array:
        return cross_entropy.vocabulary_cross_entropy_reference(*arrays, 0.1).loss_sum

    def compute_gradients(*arrays: jax.Array, size: int) -> tuple[jax.Array, ...]:
        chunks = TokenChunks(shape, size)
        return cross_entropy._differentiate_in_chunks(*arrays, chunks=chunks, smoothing=0.1)[1]

    sizes = {"all logits": math.prod(shape)} | {f"chunks of {size} tokens": size for size in CHUNKS}
    results = {"reference": measure(jax.grad(compute_reference, argnums=(0, 1, 2)), *arguments)}
    for name, size in sizes.items():
        results[name] = measure(functools.partial(compute_gradients, size=size), *arguments)
    return results


def compare_attention(groups: int, targets: int, sources: int, heads: int, depth: int, is_causal: bool) -> dict:
    """Compares implementations of attention, including the gradients of queries, keys and values."""
    shapes = (groups, targets, heads, depth), (groups, sources, heads, depth), (groups, sources, heads, depth)
    arrays = make_arrays(*shapes)
    mask = jnp.tril(jnp.ones((1, 1, targets, sources), bool)) if is_causal else None

    def ours(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return attend(queries, keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2), mask)[0]

    def sum_output(function: Callable, *arrays: jax.Array) -> jax.Array:
        return function(*arrays).astype(jnp.float32).sum()

    implementations: dict[str, Callable] = {"ours": ours}
    for name in ("xla", "cudnn"):
        implementations[f"jax.nn, {name}"] = functools.partial(
            jax.nn.dot_product_attention, is_causal=is_causal, implementation=name
        )
    return {
        name: measure(jax.grad(functools.partial(sum_output, function), (0, 1, 2)), *arrays)
        for name, function in implementations.items()
    }


def compare_dropout(workload: Workload) -> dict[str, float | str]:
    """Compares our dropout with `jax.random.bernoulli` and a copy, for the hidden layer of a feed-forward network."""
    shape = workload.images, workload.captions, workload.length - 1, workload.feed_forward
    (x,) = make_arrays(shape)
    key = jax.random.key(1)
    return {
        "ours, 8 bits": measure(lambda key, x: dropout(key, x, 0.1), key, x),
        "jax.random.bernoulli": measure(lambda key, x: jnp.where(jax.random.bernoulli(key, 0.9, shape), x, 0), key, x),
        "copy": measure(lambda x: x * 2, x),
    }


def main() -> None:
    """Prints the times of all alternatives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    workload = SCALES[parser.parse_args().scale]
    depth = workload.width // workload.heads
    tokens = workload.length - 1
    convolutions = CONVOLUTIONS if workload.image_size == 224 else ((8, 4, 3, 1),)
    operations: dict[str, dict[str, float | str]] = {}
    for size, channels, kernel, stride in convolutions:
        name = f"depthwise convolution, {size} x {size} x {channels}, kernel {kernel}, stride {stride}"
        operations[name] = compare_convolutions(workload.images, size, channels, kernel, stride)
    operations["loss"] = compare_losses(workload)
    rows = workload.images * workload.captions
    operations["self-attention"] = compare_attention(rows, tokens, tokens, workload.heads, depth, is_causal=True)
    operations["cross-attention"] = compare_attention(
        workload.images, workload.captions * tokens, workload.memory_length, workload.heads, depth, is_causal=False
    )
    operations["dropout"] = compare_dropout(workload)
    print(json.dumps({"operations": operations}))


if __name__ == "__main__":
    main()
