"""Captions from a model: greedy decoding, in one jitted loop over the decoder's cache."""

from caption_jax.decoding.decoded import Decoded
from caption_jax.decoding.dispatch import decode
from caption_jax.decoding.greedy import greedy

__all__ = ["Decoded", "decode", "greedy"]
