"""64-bit keys of words and n-grams, as pairs of uint32, because JAX has no 64-bit integers by default.

The key of a word depends only on its characters, so it can be computed from the pieces of any tokenization: the hash of
a text is an affine function of the hash of what precedes it. The two halves of a key are independent hashes.

If keys of different texts are independent and uniform, the probability that any of q queries has the key of another
text among n stored ones is at most `q * n / 2**64`. A step that looks up 100,000 n-grams in a table of 10 million
has a probability of at most 6e-8. Among the stored texts there are no collisions, which `has_collision` verifies.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Shaped, UInt32

_BITS = 32
_MODULUS = 1 << _BITS
# Multipliers of the finaliser of MurmurHash3, which is a permutation of 32-bit integers.
_FINALISERS = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_EXTENSION = np.array([0x9E3779B1, 0xB5297A4D], np.uint32)


class TextHash:
    """A hash of texts: a polynomial in two random bases, whose coefficients are random numbers per byte.

    Args:
        seed: selects the random numbers.
    """

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self._coefficients = rng.integers(0, _MODULUS, (256, 2), np.uint64).tolist()
        self._bases = (rng.integers(0, _MODULUS, 2, np.uint64) | 1).tolist()

    def compute(self, texts: Iterable[bytes]) -> tuple[UInt32[np.ndarray, "texts 2"], UInt32[np.ndarray, "texts 2"]]:
        """Computes an offset and a multiplier per text.

        `hash(prefix + text) = hash(prefix) * multiplier + offset` modulo 2^32, where the hash of an empty text is 0.
        """
        rows = [self._compute_one(text) for text in texts]
        pairs = np.array(rows, np.uint64).astype(np.uint32).reshape(-1, 2, 2)
        return pairs[:, 0], pairs[:, 1]

    def compute_keys(self, texts: Iterable[str]) -> UInt32[np.ndarray, "texts 2"]:
        """Computes the keys of words."""
        return mix(self.compute(text.encode("utf-8", "replace") for text in texts)[0])

    def _compute_one(self, text: bytes) -> tuple[list[int], list[int]]:
        offsets, multipliers = [0, 0], [1, 1]
        for byte in text:
            for half in (0, 1):
                offsets[half] = (offsets[half] * self._bases[half] + self._coefficients[byte][half]) % _MODULUS
                multipliers[half] = multipliers[half] * self._bases[half] % _MODULUS
        return offsets, multipliers


def mix(hashes: Shaped[..., "*shape 2"]) -> Shaped[..., "*shape 2"]:
    """Converts hashes of texts to keys, one to one, in NumPy or JAX."""
    hashes = hashes ^ (hashes >> 16)
    hashes = (hashes * _FINALISERS[0]) ^ ((hashes * _FINALISERS[0]) >> 13)
    hashes = hashes * _FINALISERS[1]
    return hashes ^ (hashes >> 16)


def extend(ngrams: Shaped[..., "*shape 2"], words: Shaped[..., "*shape 2"]) -> Shaped[..., "*shape 2"]:
    """Returns the keys of n-grams that are extended by one word each, in NumPy or JAX."""
    return mix(ngrams * _EXTENSION + words)


def has_collision(keys: UInt32[np.ndarray, "texts 2"]) -> bool:
    """Whether two of the keys, which belong to different texts, are equal."""
    return len(np.unique(as_integers(keys))) < len(keys)


def as_integers(keys: UInt32[np.ndarray, "*shape 2"]) -> Shaped[np.ndarray, "*shape"]:
    """Returns keys as uint64, on the host. Their order is that of `sorted_keys`."""
    return keys[..., 0].astype(np.uint64) << np.uint64(_BITS) | keys[..., 1]
