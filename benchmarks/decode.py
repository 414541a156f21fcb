"""Captions per second of beam search, compared with transformers' `generate` (PyTorch) for equal model dimensions.

    python -m benchmarks.decode [--sizes=flickr8k,coco] [--batches=1,16,64] [--beams=5] [--tokens=20] [--rounds=5]

Requires the bench extra. The peer is a `VisionEncoderDecoderModel` with GPT-2 and cross-attention as the decoder. Like
our decoder, it has pre-norm layers, tied embeddings, learned positions and a key/value cache. Both decode from the same
memory of 49 positions in float32. Their weights are random and never produce </s>, so every step is executed. Results
are medians over alternating rounds. The peer uses one thread or one per core, whichever is faster in a trial; a single
thread is faster if steps are short or other programs are running. The time of each part of our beam search is printed
as well.

The last line is JSON. `ratio` is the lowest of all batch sizes above 1. `cells` contains the results of all batch
sizes, with the ratios of wall time (`ratio`) and CPU time (`cpu_ratio`). CPU time is less sensitive to other programs.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.alternate import serve
from caption_jax.decoding import beam_search
from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from caption_jax.ops.top_k import top_k
from input_pipeline.special_tokens import EOS

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


class OurBeamSearch:
    """Our beam search."""

    def __init__(self, size: Size, workload: Workload):
        decoder = Decoder(
            size.vocabulary_size, size.layers, size.width, size.heads, size.feed_forward, max_length=workload.tokens + 1
        )
        self.model = ImageCaptioningModel(ImageEncoder(EfficientNet(size.variant), width=size.width), decoder)
        self.workload, self.memory = workload, jnp.asarray(_make_memory(size, workload))
        tokens = jnp.zeros((1, 1, workload.tokens), jnp.int32)
        init = jax.jit(lambda key: self.model.init(key, tokens, self.memory[:1], method="decode"))
        self.variables = jax.tree.map(jnp.asarray, init(jax.random.key(0)))
        bias = self.variables["params"]["decoder"]["output_bias"]
        self.variables["params"]["decoder"]["output_bias"] = bias.at[EOS].set(-1e4)
        self._search = jax.jit(
            lambda variables, memory: beam_search(
                self.model, variables, memory, max_length=workload.tokens + 1, num_beams=workload.beams
            )
        )

    def run(self) -> np.ndarray:
        """Captions the batch. Returns int32 tokens [batch, tokens]."""
        return np.asarray(self._search(self.variables, self.memory).tokens)


def make_peer_run(size: Size, workload: Workload) -> Callable[[], np.ndarray]:
    """Returns a function that captions the batch with transformers' beam search and a decoder of the same size."""
    from benchmarks.peers.transformers_captioner import TransformersCaptioner

    captioner = TransformersCaptioner(
        _make_memory(size, workload),
        vocabulary_size=size.vocabulary_size,
        layers=size.layers,
        heads=size.heads,
        feed_forward=size.feed_forward,
        tokens=workload.tokens,
    )
    return functools.partial(captioner.run, num_beams=workload.beams)


def choose_threads(run: Callable[[], Any]) -> int:
    """Sets PyTorch's number of threads to 1 or the number of cores, whichever is faster, and returns it."""
    import torch

    seconds = {}
    for threads in (1, os.cpu_count()):
        torch.set_num_threads(threads)
        seconds[threads], _ = time_call(run)
    threads = min(seconds, key=seconds.get)
    torch.set_num_threads(threads)
    return threads


def _make_memory(size: Size, workload: Workload) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(workload.batch, MEMORY_LENGTH, size.width)).astype(np.float32)


def compare(size: Size, workload: Workload, rounds: int) -> tuple[OurBeamSearch, dict[str, float]]:
    """Measures our beam search and transformers' in alternating rounds.

    Returns:
        Our beam search, and the medians: captions per second, CPU milliseconds per caption, and their ratios.
    """
    ours = OurBeamSearch(size, workload)
    sides = {"ours": ours.run, "peer": make_peer_run(size, workload)}
    for name, run in sides.items():
        tokens = run()
        if tokens.shape != (workload.batch, workload.tokens):
            raise AssertionError(f"{name} returned tokens of shape {tokens.shape}")
    comparison: dict[str, float] = {"peer_threads": choose_threads(sides["peer"])}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(time_call(run))
    for name, pairs in times.items():
        comparison[name] = workload.batch / statistics.median(wall for wall, _ in pairs)
        comparison[f"{name}_cpu_ms"] = 1e3 * statistics.median(cpu for _, cpu in pairs) / workload.batch
    comparison["ratio"] = comparison["ours"] / comparison["peer"]
    return ours, {**comparison, "cpu_ratio": comparison["peer_cpu_ms"] / comparison["ours_cpu_ms"]}


def time_call(function: Callable, *arguments: Any) -> tuple[float, float]:
    """Calls a function and returns its wall time and CPU time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - wall, time.process_time() - cpu


def time_parts(ours: OurBeamSearch, size: Size, rounds: int) -> dict[str, float]:
    """Returns the milliseconds per batch of each part of beam search, measured separately."""
    workload, model = ours.workload, ours.model
    cache = model.apply(ours.variables, ours.memory, rows=workload.beams, method="start_cache")
    tokens = jnp.zeros((workload.batch, workload.beams), jnp.int32)
    logits = jnp.arange(size.vocabulary_size) / 7 % 3
    logits = jnp.broadcast_to(logits, (workload.batch, workload.beams, size.vocabulary_size))
    images = jnp.zeros((workload.batch, 224, 224, 3))
    full_variables = jax.jit(lambda key: model.init(key, images[:1], tokens[:1, :, None]))(jax.random.key(0))

    def encode(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, method="encode_images").memory

    def run_decoder(variables: Any, cache: Any, tokens: jax.Array) -> jax.Array:
        def step(_, carry):
            cache, tokens, total = carry
            output = model.apply(variables, tokens[:, :, None], cache=cache, method="decode")
            return output.cache, tokens, total + output.logits[..., 0]

        return jax.lax.fori_loop(0, workload.tokens, step, (cache, tokens, jnp.zeros((*tokens.shape, 1))))[2]

    def select_tokens(logits: jax.Array) -> jax.Array:
        def step(_, carry):
            log_probs = carry - jax.nn.logsumexp(carry, axis=-1, keepdims=True)
            return carry.at[..., 0].add(top_k(log_probs, workload.beams)[0].sum(-1))

        return jax.lax.fori_loop(0, workload.tokens, step, logits)[..., 0]

    def reorder(cache: Any, tokens: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, workload.tokens, lambda _, cache: cache.reorder(tokens), cache).ancestors

    parts = {
        "encoder": (jax.jit(encode), full_variables, images),
        "decoder steps": (jax.jit(run_decoder), ours.variables, cache, tokens),
        "softmax and top-k": (jax.jit(select_tokens), logits),
        "reordering": (jax.jit(reorder), cache, tokens),
        "beam search in total": (ours.run,),
    }
    milliseconds = {}
    for name, (function, *arguments) in parts.items():
        time_call(function, *arguments)
        milliseconds[name] = 1e3 * statistics.median(time_call(function, *arguments)[0] for _ in range(rounds))
    return milliseconds


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="flickr8k,coco")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--serve",
        default="",
        choices=["", *SIZES],
        help="run as a child process that decodes with this model size and the first of --batches",
    )
    options = parser.parse_args()
    if options.serve:
        batch = int(options.batches.split(",")[0])
        serve(OurBeamSearch(SIZES[options.serve], Workload(batch, options.beams, options.tokens)).run, untimed_runs=1)
        return
    comparisons: dict[str, dict[str, float]] = {}
    for name in options.sizes.split(","):
        for batch in map(int, options.batches.split(",")):
            size, workload = SIZES[name], Workload(batch, options.beams, options.tokens)
            ours, comparison = compare(size, workload, options.rounds)
            comparisons[f"{name}, batch {batch}"] = {key: round(value, 3) for key, value in comparison.items()}
            print(f"{name}, batch {batch}: ours {comparison['ours']:.1f}, peer {comparison['peer']:.1f} captions/s, "
                  f"ratio {comparison['ratio']:.2f}; CPU time per caption: ours {comparison['ours_cpu_ms']:.1f} ms, "
                  f"peer {comparison['peer_cpu_ms']:.1f} ms in {comparison['peer_threads']} threads",
                  flush=True)  # fmt: skip
            times = ", ".join(f"{part} {ms:.1f} ms" for part, ms in time_parts(ours, size, options.rounds).items())
            print(f"    per batch: {times}", flush=True)
    # Batch size 1 counts towards the ratio only if it is the only batch size.
    candidates = [key for key in comparisons if not key.endswith(" 1")] or list(comparisons)
    worst = min(candidates, key=lambda key: comparisons[key]["ratio"])
    print(
        json.dumps(
            {
                "name": "decode",
                "ratio": comparisons[worst]["ratio"],
                "ours": comparisons[worst]["ours"],
                "peer": comparisons[worst]["peer"],
                "unit": "captions/s",
                "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
                "cells": comparisons,
            }
        )
    )


if __name__ == "__main__":
    main()
