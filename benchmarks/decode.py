"""Captions per second with beam search, compared with transformers' `generate` (PyTorch) at the same sizes.

    python -m benchmarks.decode [--sizes=flickr8k,coco] [--batches=1,16,64] [--beams=5] [--tokens=20] [--rounds=5]

Needs the bench extra. The peer is a `VisionEncoderDecoderModel` whose decoder is GPT-2 with cross-attention: pre-norm
layers, tied output and learned positions, as in ours, with its key/value cache. Both decode from the same memory of 49
positions, in float32, with random weights that never produce </s>, so both run every step. Rounds alternate and the
median counts. The peer runs with one thread or one per core, whichever is faster in a trial; a single thread wins if
steps are small or other programs are running. A breakdown of our time follows. The last line is JSON: `ratio` is the
worst of the batches above one. `cells` holds all of them, with the ratios of wall time and of CPU time, which is
less sensitive to other programs.
"""

from __future__ import annotations

import argparse
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
from input_pipeline.special_tokens import BOS, EOS, PAD

MEMORY_LENGTH = 49


@dataclass(frozen=True)
class Size:
    """Dimensions of a decoder, and the variant of its image encoder."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    variant: str


SIZES = {
    "flickr8k": Size(3, 256, 8, 1024, 4000, "lite0"),
    "coco": Size(6, 512, 8, 2048, 10000, "b0"),
}


@dataclass(frozen=True)
class Work:
    """Workload of both sides."""

    batch: int
    beams: int
    tokens: int


class Ours:
    """Beam search of this project."""

    def __init__(self, size: Size, work: Work):
        decoder = Decoder(
            size.vocabulary, size.layers, size.width, size.heads, size.feed_forward, max_length=work.tokens + 1
        )
        self.model = ImageCaptioningModel(ImageEncoder(EfficientNet(size.variant), width=size.width), decoder)
        self.work, self.memory = work, jnp.asarray(_memory(size, work))
        tokens = jnp.zeros((1, 1, work.tokens), jnp.int32)
        init = jax.jit(lambda key: self.model.init(key, tokens, self.memory[:1], method="decode"))
        self.variables = jax.tree.map(jnp.asarray, init(jax.random.key(0)))
        bias = self.variables["params"]["decoder"]["output_bias"]
        self.variables["params"]["decoder"]["output_bias"] = bias.at[EOS].set(-1e4)
        self._search = jax.jit(
            lambda variables, memory: beam_search(
                self.model, variables, memory, max_length=work.tokens + 1, num_beams=work.beams
            )
        )

    def run(self) -> np.ndarray:
        """Captions the batch and returns the tokens."""
        return np.asarray(self._search(self.variables, self.memory).tokens)


class Peer:
    """transformers' beam search."""

    def __init__(self, size: Size, work: Work):
        import torch
        from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
        from transformers.modeling_outputs import BaseModelOutput

        decoder = GPT2Config(
            vocab_size=size.vocabulary,
            n_positions=work.tokens + 1,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            n_inner=size.feed_forward,
            add_cross_attention=True,
            is_decoder=True,
        )
        encoder = ViTConfig(hidden_size=size.width, num_hidden_layers=1, num_attention_heads=size.heads)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        torch.manual_seed(0)
        self._torch, self.work = torch, work
        self.model = VisionEncoderDecoderModel(config).eval()
        self._encoded = BaseModelOutput(last_hidden_state=torch.tensor(_memory(size, work)))
        self._options = {
            "num_beams": work.beams,
            "max_new_tokens": work.tokens,
            "decoder_start_token_id": 0,
            "bos_token_id": BOS,
            "eos_token_id": None,
            "pad_token_id": PAD,
            "do_sample": False,
            "use_cache": True,
        }

    def run(self) -> np.ndarray:
        """Captions the batch and returns the tokens."""
        encoded = type(self._encoded)(last_hidden_state=self._encoded.last_hidden_state)
        with self._torch.inference_mode():
            return self.model.generate(encoder_outputs=encoded, **self._options).numpy()[:, 1:]

    def choose_threads(self) -> int:
        """Uses one thread or one per core, whichever is faster, and returns the number of threads."""
        seconds = {}
        for threads in (1, os.cpu_count()):
            self._torch.set_num_threads(threads)
            seconds[threads], _ = timed(self.run)
        threads = min(seconds, key=seconds.get)
        self._torch.set_num_threads(threads)
        return threads


def _memory(size: Size, work: Work) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(work.batch, MEMORY_LENGTH, size.width)).astype(np.float32)


def compare(size: Size, work: Work, rounds: int) -> tuple[Ours, dict[str, float]]:
    """Captions per second and CPU milliseconds per caption of ours and the peer, in alternating rounds."""
    ours, peer = Ours(size, work), Peer(size, work)
    sides = {"ours": ours.run, "peer": peer.run}
    for name, run in sides.items():
        tokens = run()
        if tokens.shape != (work.batch, work.tokens):
            raise AssertionError(f"{name} returned tokens of shape {tokens.shape}")
    cell: dict[str, float] = {"peer_threads": peer.choose_threads()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            times[name].append(timed(run))
    for name, measured in times.items():
        cell[name] = work.batch / statistics.median(wall for wall, _ in measured)
        cell[f"{name}_processor_ms"] = 1e3 * statistics.median(spent for _, spent in measured) / work.batch
    cell["ratio"] = cell["ours"] / cell["peer"]
    return ours, {**cell, "ratio_of_processor_time": cell["peer_processor_ms"] / cell["ours_processor_ms"]}


def timed(function: Callable, *arguments: Any) -> tuple[float, float]:
    """Returns (wall, CPU) seconds of a call."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - wall, time.process_time() - processor


def breakdown(ours: Ours, size: Size, rounds: int) -> dict[str, float]:
    """Milliseconds per batch of the components of a search, each run on its own."""
    work, model = ours.work, ours.model
    cache = model.apply(ours.variables, ours.memory, rows=work.beams, method="start_cache")
    tokens = jnp.zeros((work.batch, work.beams), jnp.int32)
    logits = jnp.zeros((work.batch, work.beams, size.vocabulary)) + jnp.arange(size.vocabulary) / 7 % 3
    images = jnp.zeros((work.batch, 224, 224, 3))
    whole = ImageCaptioningModel(model.image_encoder, model.decoder)
    weights = jax.jit(lambda key: whole.init(key, images[:1], tokens[:1, :, None]))(jax.random.key(0))

    def steps(variables: Any, cache: Any, tokens: jax.Array) -> jax.Array:
        def step(_, carry):
            cache, tokens, total = carry
            output = model.apply(variables, tokens[:, :, None], cache=cache, method="decode")
            return output.cache, tokens, total + output.logits[..., 0]

        return jax.lax.fori_loop(0, work.tokens, step, (cache, tokens, jnp.zeros((*tokens.shape, 1))))[2]

    def softmax(logits: jax.Array) -> jax.Array:
        def step(_, carry):
            log_probs = carry - jax.nn.logsumexp(carry, axis=-1, keepdims=True)
            return carry.at[..., 0].add(top_k(log_probs, work.beams)[0].sum(-1))

        return jax.lax.fori_loop(0, work.tokens, step, logits)[..., 0]

    def reorder(cache: Any, tokens: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, work.tokens, lambda _, cache: cache.reorder(tokens), cache).ancestors

    measured = {
        "encoder": (jax.jit(lambda v, x: whole.apply(v, x, method="encode_images").memory), weights, images),
        "steps": (jax.jit(steps), ours.variables, cache, tokens),
        "softmax and top-k": (jax.jit(softmax), logits),
        "reorder": (jax.jit(reorder), cache, tokens),
        "whole search": (ours.run,),
    }
    milliseconds = {}
    for name, (function, *arguments) in measured.items():
        timed(function, *arguments)
        milliseconds[name] = 1e3 * statistics.median(timed(function, *arguments)[0] for _ in range(rounds))
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
        "--serve", default="", choices=["", *SIZES], help="run as our side of the comparison, with the first batch size"
    )
    options = parser.parse_args()
    if options.serve:
        batch = int(options.batches.split(",")[0])
        serve(Ours(SIZES[options.serve], Work(batch, options.beams, options.tokens)).run, untimed_runs=1)
        return
    cells: dict[str, dict[str, float]] = {}
    for name in options.sizes.split(","):
        for batch in map(int, options.batches.split(",")):
            size, work = SIZES[name], Work(batch, options.beams, options.tokens)
            ours, cell = compare(size, work, options.rounds)
            cells[f"{name}, batch {batch}"] = {key: round(value, 3) for key, value in cell.items()}
            print(f"{name}, batch {batch}: ours {cell['ours']:.1f}, peer {cell['peer']:.1f} captions/s, "
                  f"ratio {cell['ratio']:.2f}; CPU time per caption: ours {cell['ours_processor_ms']:.1f} ms, "
                  f"peer {cell['peer_processor_ms']:.1f} ms in {cell['peer_threads']} threads", flush=True)  # fmt: skip
            spent = ", ".join(f"{part} {ms:.1f} ms" for part, ms in breakdown(ours, size, options.rounds).items())
            print(f"    per batch: {spent}", flush=True)
    # Batch 1 is only reported in the cells; it decides the ratio if no other batch was requested.
    counted = [key for key in cells if not key.endswith(" 1")] or list(cells)
    worst = min(counted, key=lambda key: cells[key]["ratio"])
    print(
        json.dumps(
            {
                "name": "decode",
                "ratio": cells[worst]["ratio"],
                "ours": cells[worst]["ours"],
                "peer": cells[worst]["peer"],
                "unit": "captions/s",
                "device": f"{jax.devices()[0].device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
                "cells": cells,
            }
        )
    )


if __name__ == "__main__":
    main()
