"""The transformers decoder to which beam search is compared: GPT-2 with cross-attention to a memory.

    python -m benchmarks.peers.transformers_captioner --size=coco --batches=16

Like our decoder, it has pre-norm layers, tied embeddings, learned positions and a key/value cache. Its weights are
random, and no token ends a caption, so every step is executed. As a child process of `benchmarks.decode`, it uses one
thread or one per core, whichever is faster in a trial.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.alternate import serve
from benchmarks.conditions import list_usable_cores
from benchmarks.decode_workload import SIZES, Workload, make_memory
from input_pipeline.special_tokens import BOS, PAD


class TransformersCaptioner:
    """Decodes one batch with transformers' `generate`.

    Args:
        memory: Float array [batch, memory length, width].
        tokens: Number of tokens per caption.
        device: Device of the weights and of the memory.
        dtype: Dtype of the weights and of the memory.
    """

    def __init__(
        self,
        memory: np.ndarray,
        *,
        vocabulary_size: int,
        layers: int,
        heads: int,
        feed_forward: int,
        tokens: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        batch, _, width = memory.shape
        decoder = GPT2Config(
            vocab_size=vocabulary_size,
            n_positions=tokens + 1,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            n_inner=feed_forward,
            add_cross_attention=True,
            is_decoder=True,
        )
        encoder = ViTConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=heads)
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        torch.manual_seed(0)
        self._model = VisionEncoderDecoderModel(config).eval().to(device, dtype)
        self._memory = torch.tensor(memory, device=device, dtype=dtype)
        self._shape = batch, tokens
        self._options = {
            "max_new_tokens": tokens,
            "decoder_start_token_id": 0,
            "bos_token_id": BOS,
            "eos_token_id": None,
            "pad_token_id": PAD,
            "do_sample": False,
            "use_cache": True,
        }

    def run(self, num_beams: int) -> np.ndarray:
        """Captions the batch. Returns int tokens [batch, tokens].

        Args:
            num_beams: Hypotheses per image; 1 is greedy decoding.
        """
        encoder_outputs = BaseModelOutput(last_hidden_state=self._memory)
        with torch.inference_mode():
            captions = self._model.generate(encoder_outputs=encoder_outputs, num_beams=num_beams, **self._options)
        captions = captions.cpu().numpy()[:, 1:]
        if captions.shape != self._shape:
            raise AssertionError(f"captions have shape {captions.shape}, expected {self._shape}")
        return captions


def choose_threads(run: Callable[[], Any]) -> int:
    """Sets PyTorch's number of threads to 1 or the number of cores, whichever is faster, and returns it."""
    seconds = {}
    for threads in sorted({1, len(list_usable_cores())}):
        torch.set_num_threads(threads)
        run()  # warm-up
        seconds[threads] = min(_time_call(run) for _ in range(2))
    threads = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(threads)
    return threads


def _time_call(run: Callable[[], Any]) -> float:
    """Returns the wall time of a call in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Serves beam search as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--batches", type=int, default=16, help="images per batch")
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=20)
    options = parser.parse_args()
    size, workload = SIZES[options.size], Workload(options.batches, options.beams, options.tokens)
    captioner = TransformersCaptioner(
        make_memory(size, workload),
        vocabulary_size=size.vocabulary_size,
        layers=size.layers,
        heads=size.heads,
        feed_forward=size.feed_forward,
        tokens=workload.tokens,
    )
    run = functools.partial(captioner.run, num_beams=workload.beams)
    serve(run, untimed_runs=1, threads=choose_threads(run))


if __name__ == "__main__":
    main()
