"""Our side of `benchmarks.decode`. Its process must call `set_up_process` before it imports this module."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decode_workload import Size, Workload, make_memory
from caption_jax.decoding import beam_search
from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from caption_jax.ops.top_k import top_k
from input_pipeline.special_tokens import EOS


class OurBeamSearch:
    """Our beam search, with random weights that never produce </s>."""

    def __init__(self, size: Size, workload: Workload):
        decoder = Decoder(
            size.vocabulary_size, size.layers, size.width, size.heads, size.feed_forward, max_length=workload.tokens + 1
        )
        self.model = ImageCaptioningModel(ImageEncoder(EfficientNet(size.variant), width=size.width), decoder)
        self.workload, self.memory = workload, jnp.asarray(make_memory(size, workload))
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
        tokens = np.asarray(self._search(self.variables, self.memory).tokens)
        if tokens.shape != (self.workload.batch, self.workload.tokens):
            raise AssertionError(f"captions have shape {tokens.shape}")
        return tokens


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
        _time_call(function, *arguments)
        milliseconds[name] = 1e3 * statistics.median(_time_call(function, *arguments) for _ in range(rounds))
    return milliseconds


def _time_call(function: Callable, *arguments: Any) -> float:
    """Calls a function and returns its wall time in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start
