"""Bytes that the image encoder reads and writes in a training step on a TPU, counted in a compiled program.

    python -m benchmarks.encoder_bytes --images=256 --group=32 --stop=stage_2

The peer is our encoder with standard batch norms: arrays have an additional axis for groups of images, the activation
function is a separate operation after the norm, and gradients are computed by autodiff. Both encoders are compiled in
bfloat16 for one TPU v5e chip, and XLA counts the bytes. The last line is JSON; a ratio above 1 means that our encoder
moves fewer bytes. Requires the tpu extra.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp

from caption_jax.models.backbones import efficientnet
from caption_jax.models.backbones import efficientnet_variants as variants
from caption_jax.ops.implementations import FAST, Ops
from caption_jax.ops.norm_activation import norm_activation_reference
from caption_jax.planning.cost import Cost, measure_cost
from caption_jax.planning.topology import parse_topology, prepare

_TOPOLOGY = "v5e:1x1"

# The operations of the peer.
STANDARD_NORMS = dataclasses.replace(FAST, norm_activation=norm_activation_reference)


def lower_training_step(options: argparse.Namespace, ops: Ops) -> jax.stages.Lowered:
    """Lowers the forward and backward pass of the encoder for the chip.

    The function computes the gradients of the parameters from the gradient of the features, and new batch statistics.
    """
    model = efficientnet.EfficientNet(options.variant, norm_group_size=options.group, dtype=jnp.bfloat16, ops=ops)
    size = variants.get_variant(options.variant).resolution
    images = jax.ShapeDtypeStruct((options.images, size, size, 3), jnp.bfloat16)

    def forward(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        return model.apply(variables, images, train=True, stop_after=options.stop, mutable=["batch_stats"])

    def step(params, statistics, images, gradient):
        _, pullback, new_statistics = jax.vjp(lambda params: forward(params, statistics, images), params, has_aux=True)
        return pullback(gradient)[0], new_statistics

    def init(images):
        return model.init(jax.random.key(0), images[:1], train=False, stop_after=options.stop)

    shapes = jax.eval_shape(init, images)
    arguments = shapes["params"], shapes["batch_stats"], images
    (chip,) = parse_topology(_TOPOLOGY).devices()
    sharding = jax.sharding.SingleDeviceSharding(chip)
    features = jax.eval_shape(forward, *arguments)[0]
    return jax.jit(step, in_shardings=sharding, out_shardings=sharding).lower(*arguments, features)


def main() -> None:
    """Compiles both encoders and prints the bytes that they move."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="b0", help="EfficientNet variant, at its default resolution")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--group", type=int, default=32, help="number of images that share statistics; 0 for all")
    parser.add_argument("--stop", default="", help="last stage to compute, such as stage_2; all stages by default")
    options = parser.parse_args()
    prepare(_TOPOLOGY)
    costs: dict[str, Cost] = {}
    for name, ops in (("ours", FAST), ("peer", STANDARD_NORMS)):
        costs[name] = measure_cost(lower_training_step(options, ops), options.images, 1)
        _print_cost(name, costs[name])
    megabytes = {name: cost.bytes / cost.images / 1e6 for name, cost in costs.items()}
    result = {"name": "encoder_bytes", "ratio": megabytes["peer"] / megabytes["ours"]}
    result |= {**megabytes, "unit": "MB per image"}
    print(json.dumps(result | {"device": "TPU v5e, compiled only", "cells": vars(options)}))


def _print_cost(name: str, cost: Cost) -> None:
    total, main_memory = (size / cost.images / 1e6 for size in (cost.bytes, cost.memory_bytes))
    print(
        f"{name}: {total:.1f} MB per image, of which {main_memory:.1f} MB in main memory; "
        f"temporaries {cost.temporaries / 1e9:.2f} GB; compiled in {cost.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
