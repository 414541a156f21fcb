"""Bytes that the image encoder moves in a training step on a TPU, from a compiled program that is not run.

    python -m benchmarks.encoder_bytes --images=256 --group=32 --stop=stage_2

Ours is the encoder unchanged. The peer is the same encoder with batch norms as they are usually written: a separate
axis of groups, the activation after the norm, and gradients by autodiff. Both are compiled in bfloat16 for one TPU v5e
chip, and XLA counts the bytes. The last line is JSON; a ratio above 1 means that ours moves fewer bytes. Requires the
tpu extra.
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
from caption_jax.planning.cost import Cost, measure
from caption_jax.planning.topology import parse_topology, prepare

_TOPOLOGY = "v5e:1x1"


# The peer: statistics over an axis of groups, then scale, shift and activation, differentiated by autodiff.
PLAIN_NORMS = dataclasses.replace(FAST, norm_activation=norm_activation_reference)


def training_step(options: argparse.Namespace, ops: Ops) -> jax.stages.Lowered:
    """Lowers the step from feature gradients to parameter gradients and new statistics for the chip."""
    model = efficientnet.EfficientNet(options.variant, norm_group_size=options.group, dtype=jnp.bfloat16, ops=ops)
    size = variants.get_variant(options.variant).resolution
    images = jax.ShapeDtypeStruct((options.images, size, size, 3), jnp.bfloat16)

    def run(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        return model.apply(variables, images, train=True, stop_after=options.stop, mutable=["batch_stats"])

    def step(params, statistics, images, gradient):
        _, pullback, updated = jax.vjp(lambda p: run(p, statistics, images), params, has_aux=True)
        return pullback(gradient)[0], updated

    def init(images):
        return model.init(jax.random.key(0), images[:1], train=False, stop_after=options.stop)

    shapes = jax.eval_shape(init, images)
    arguments = shapes["params"], shapes["batch_stats"], images
    (chip,) = parse_topology(_TOPOLOGY).devices()
    sharding = jax.sharding.SingleDeviceSharding(chip)
    features = jax.eval_shape(run, *arguments)[0]
    return jax.jit(step, in_shardings=sharding, out_shardings=sharding).lower(*arguments, features)


def main() -> None:
    """Compiles both and prints the bytes they move."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="b0", help="EfficientNet variant, at its default resolution")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--group", type=int, default=32, help="images that share statistics; 0 for all")
    parser.add_argument("--stop", default="", help="last stage, such as stage_2; all by default")
    options = parser.parse_args()
    prepare(_TOPOLOGY)
    costs: dict[str, Cost] = {}
    for name, ops in (("ours", FAST), ("peer", PLAIN_NORMS)):
        costs[name] = measure(training_step(options, ops), options.images, 1)
        _show(name, costs[name])
    megabytes = {name: cost.bytes / cost.images / 1e6 for name, cost in costs.items()}
    line = {"name": "encoder_bytes", "ratio": megabytes["peer"] / megabytes["ours"]}
    line |= {**megabytes, "unit": "MB per image"}
    print(json.dumps(line | {"device": "TPU v5e, compiled only", "cells": vars(options)}))


def _show(name: str, cost: Cost) -> None:
    moved, main_memory = (size / cost.images / 1e6 for size in (cost.bytes, cost.memory_bytes))
    print(
        f"{name}: {moved:.1f} MB per image, {main_memory:.1f} MB in main memory; "
        f"temporaries {cost.temporaries / 1e9:.2f} GB; compiled in {cost.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
