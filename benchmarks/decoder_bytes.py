"""Bytes that the decoder and its loss read and write in a training step on a TPU, counted in a compiled program.

    python -m benchmarks.decoder_bytes --images=256 --layers=6 --packing=blocks

The decoder has the dimensions of `configs/coco.py`, with 5 captions of at most 40 tokens per image, and is compiled in
bfloat16 for one TPU v5e chip. The last line is JSON. Requires the tpu extra.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from caption_jax.models.decoder import Decoder
from caption_jax.objectives.forward_pass import CaptionRows
from caption_jax.ops.implementations import IMPLEMENTATIONS
from caption_jax.planning.assumed_packing import packed_shapes
from caption_jax.planning.chips import CHIPS
from caption_jax.planning.cost import Cost, compute_cost
from caption_jax.planning.topology import parse_topology, prepare
from input_pipeline.block_layout import BlockLayout

_TOPOLOGY = "v5e:1x1"
_CAPTIONS, _LENGTH, _MEMORY, _WIDTH = 5, 40, 49, 512


def lower_training_step(options: argparse.Namespace) -> jax.stages.Lowered:
    """Lowers the loss and its gradients in the parameters and the memory."""
    decoder = Decoder(
        options.vocabulary,
        options.layers,
        _WIDTH,
        8,
        2048,
        dropout=options.dropout,
        max_length=_LENGTH,
        dtype=jnp.bfloat16,
        ops=IMPLEMENTATIONS[options.ops],
    )
    batch = {
        "tokens": jax.ShapeDtypeStruct((options.images, _CAPTIONS, _LENGTH), jnp.int32),
        "mask": jax.ShapeDtypeStruct((options.images,), jnp.bool_),
    }
    if options.packing == "blocks":
        batch |= packed_shapes(BlockLayout(options.block_length, options.images // 32), 1, options.images)
    memory = jax.ShapeDtypeStruct((options.images, _MEMORY, _WIDTH), jnp.bfloat16)

    def compute_loss(params, memory, batch, key):
        rows = CaptionRows.from_batch(batch)

        def run(decoder):
            states = decoder(rows.inputs, memory, segments=rows.segments, train=True).states
            return decoder.ops.vocabulary_cross_entropy(
                states, *decoder.output_layer(), rows.targets, rows.weights, 0.1
            )

        loss = decoder.apply({"params": params}, rngs={"dropout": key}, method=run)
        return loss.loss_sum / loss.weight_sum

    variables = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1, 2), jnp.int32), jnp.zeros((1, 2, 512)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    (chip,) = parse_topology(_TOPOLOGY).devices()
    sharding = jax.sharding.SingleDeviceSharding(chip)
    step = jax.jit(jax.value_and_grad(compute_loss, (0, 1)), in_shardings=sharding, out_shardings=sharding)
    return step.lower(variables["params"], memory, batch, key)


def summarise(cost: Cost) -> dict[str, Any]:
    """Returns the cost per image."""
    chip = CHIPS["v5e"]
    return {
        "main_memory_mb": cost.memory_bytes / cost.images / 1e6,
        "parts_mb": {part: size / cost.images / 1e6 for part, size in cost.bytes_by_part.items()},
        "temporaries_gb": cost.temporaries / 1e9,
        "matrix_gflop": cost.matrix_flops / cost.images / 1e9,
        "images_per_second": cost.images * chip.bandwidth / cost.memory_bytes,
    }


def main() -> None:
    """Compiles the step and prints its cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="images per chip")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--packing", choices=["never", "blocks"], default="blocks")
    parser.add_argument("--block_length", type=int, default=128)
    parser.add_argument("--ops", choices=sorted(IMPLEMENTATIONS), default="fast")
    parser.add_argument("--text", type=Path, help="file for the text of the compiled program")
    options = parser.parse_args()
    prepare(_TOPOLOGY)
    lowered = lower_training_step(options)
    compiled = lowered.compile()
    if options.text:
        options.text.write_text(compiled.as_text())
    result = summarise(compute_cost(lowered, compiled, options.images, 1))
    for name, value in (result | result["parts_mb"]).items():
        if name != "parts_mb":
            print(f"{name:24} {value:10.2f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
