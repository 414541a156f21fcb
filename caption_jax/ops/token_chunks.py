"""Chunks of the tokens of a batch, for computations whose results per token are too large to be stored at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array


@dataclass(frozen=True)
class TokenChunks:
    """Split of the tokens of a batch into chunks of equal size, of which each device holds an equal part.

    Consecutive tokens of a device form a chunk, so no token is moved between devices. The number of chunks is the
    smallest that respects the maximum size, and the tokens are distributed evenly, so there is little padding in the
    last chunk.

    Attributes:
        shape: shape of the token axes, such as (batch, captions, length).
        max_size: maximum number of tokens per chunk and device.
        shards: number of devices over which the first token axis is sharded.
    """

    shape: tuple[int, ...]
    max_size: int
    shards: int = 1

    def __post_init__(self):
        if self.shards > 1 and self.shape[0] % self.shards:
            raise ValueError(f"cannot split token axes of shape {self.shape} evenly over {self.shards} devices")

    @property
    def tokens(self) -> int:
        """Number of tokens per device."""
        return math.prod(self.shape) // self.shards

    @property
    def count(self) -> int:
        """Number of chunks."""
        return -(-self.tokens // self.size)

    @property
    def size(self) -> int:
        """Number of tokens per chunk and device: a multiple of 8 unless that exceeds the maximum or all tokens."""
        size = -(-self.tokens // -(-self.tokens // self.max_size))
        return min(-(-size // 8) * 8, self.max_size, self.tokens)

    @property
    def axes(self) -> tuple[int, ...]:
        """Shape of the token axes of a chunk: (shards, tokens), or (tokens,) for a single device.

        With a leading axis of length 1, sums over tokens would be many times slower with XLA:CPU.
        """
        return (self.shards, self.size) if self.shards > 1 else (self.size,)

    def split(self, x: Array) -> Array:
        """Reshapes [*shape, *features] to [count, *axes, *features]. The last chunk is padded with zeros."""
        features = x.shape[len(self.shape) :]
        x = x.reshape(self.shards, self.tokens, *features)
        padding = self.count * self.size - self.tokens
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * len(features))
        x = jnp.moveaxis(x.reshape(self.shards, self.count, self.size, *features), 1, 0)
        return x.reshape(self.count, *self.axes, *features)

    def merge(self, chunks: Array) -> Array:
        """Inverts `split`."""
        features = chunks.shape[1 + len(self.axes) :]
        x = jnp.moveaxis(chunks.reshape(self.count, self.shards, self.size, *features), 0, 1)
        return x.reshape(self.shards, -1, *features)[:, : self.tokens].reshape(*self.shape, *features)
