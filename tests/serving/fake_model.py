"""A model without a network for tests of serving: the caption of an image is its content.

The decoder attends to one cell of a grid of 2 x 3 cells for each word, in row-major order.
"""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from caption_jax.serving.caption_request import Offer, Program
from caption_jax.serving.caption_service import Row
from input_pipeline.errors import ImageError


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds. Fails after 20 seconds."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "the condition does not hold"
        time.sleep(0.001)


class FakeCaption:
    """A caption with the attributes of `caption_jax.inference.captioner.Caption`."""

    def __init__(self, text: str, log_prob: float, *, has_attention: bool = False):
        self.text, self.log_prob, self.tokens = text, log_prob, tuple(text.split())
        weights = np.eye(6)[np.arange(len(self.tokens)) % 6].reshape(-1, 2, 3)
        if has_attention:
            self.attention = types.SimpleNamespace(words=self.tokens, weights=weights)  # without importing JAX


class FakeModel:
    """Captions bytes with their own text. Bytes that start with "bad" or are not text cannot be read.

    Attributes:
        batches: (program, texts, size) of each batch.
        gate: batches wait while it is not set.
        running: set while a batch runs.
        contexts: the context of each request.
        before_batch: called at the start of each batch; may raise.
    """

    def __init__(self, beams: Sequence[int] = (3,), *, attention: bool = True):
        self.offer = Offer(Program("greedy"), beams, 20, self._encode, attention=attention)
        self.batches: list[tuple[Program, list[str], int]] = []
        self.gate, self.running = threading.Event(), threading.Event()
        self.gate.set()
        self.before_batch: Callable[[], None] = lambda: None
        self.contexts: list[tuple[str, ...]] = []
        self.decoding_threads: set[str] = set()
        self.warm_sizes: list[int] = []

    def load(self, image: bytes) -> str:
        self.decoding_threads.add(threading.current_thread().name)
        text = image.decode(errors="replace")
        if text.startswith("bad") or "\N{REPLACEMENT CHARACTER}" in text:
            raise ImageError("encoded image", "cannot be decoded")
        return text

    def run(self, program: Program, rows: list[Row], size: int) -> list[list[FakeCaption]]:
        self.running.set()
        assert self.gate.wait(10)
        self.running.clear()
        self.batches.append((program, [row.pixels for row in rows], size))
        self.contexts += [row.request.context for row in rows]
        self.before_batch()
        return [self.make_captions(row) for row in rows]

    def make_captions(self, row: Row) -> list[FakeCaption]:
        beams, wants_attention = row.request.program.beams, row.request.attention
        return [
            FakeCaption(row.pixels, -float(rank), has_attention=wants_attention and not rank) for rank in range(beams)
        ]

    def warm_up(self, sizes: Sequence[int]) -> None:
        assert self.gate.wait(10)
        self.warm_sizes = list(sizes)

    def describe(self) -> Mapping[str, Any]:
        return {"step": 7}

    @staticmethod
    def _encode(text: str) -> list[int] | None:
        return None if "?" in text else list(range(4, 4 + len(text.split())))
