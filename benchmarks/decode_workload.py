"""What both sides of `benchmarks.decode` compute: model dimensions, batches, and their FLOPs. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEMORY_LENGTH = 49


@dataclass(frozen=True)
class Size:
    """Dimensions of a decoder, and the EfficientNet variant of its image encoder."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary_size: int
    variant: str


SIZES = {
    "flickr8k": Size(3, 256, 8, 1024, 4000, "lite0"),
    "coco": Size(6, 512, 8, 2048, 10000, "b0"),
}


@dataclass(frozen=True)
class Workload:
    """Images per batch, beams per image and tokens per caption."""

    batch: int
    beams: int
    tokens: int


def make_memory(size: Size, workload: Workload) -> np.ndarray:
    """Returns random encoded images, float32 [batch, memory length, width]."""
    return np.random.default_rng(0).normal(size=(workload.batch, MEMORY_LENGTH, size.width)).astype(np.float32)


def count_flops(size: Size, workload: Workload) -> int:
    """Returns the FLOPs of the matrix products that decode a batch with all beams in every step.

    Counted are the keys and values of the memory, once per image, and for each token of each beam the projections, the
    feed-forward network, the attention to the memory and to this and earlier tokens, and the logits. Norms, softmax,
    and the selection of beams are not counted.
    """
    width, steps = size.width, workload.tokens
    memory = workload.batch * MEMORY_LENGTH * 2 * width * width
    tokens = workload.batch * workload.beams * steps
    projections = tokens * (6 * width * width + 2 * width * size.feed_forward)
    earlier_tokens = workload.batch * workload.beams * steps * (steps + 1) // 2
    attention = 2 * width * (earlier_tokens + tokens * MEMORY_LENGTH)
    return 2 * (size.layers * (memory + projections + attention) + tokens * width * size.vocabulary_size)
