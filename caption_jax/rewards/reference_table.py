"""Words of the references of all images, on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from caption_jax.rewards.caption_words import Words

MAX_WORDS = 128  # words of a reference that are stored, far more than there are in a generated caption


class ReferenceTable(NamedTuple):
    """Words of the references of the images of a split, concatenated, so that long captions take no space in others.

    The 590,000 captions of COCO take about 55 MB.

    Attributes:
        keys: keys of all words.
        starts: index of the first word of each reference.
        lengths: number of words of each reference.
        counts: number of references per image.
        positions: 0, 1, .. up to the number of words of the longest reference.
    """

    keys: UInt32[Array | np.ndarray, "words 2"]
    starts: Int[Array | np.ndarray, "images references"]
    lengths: Int[Array | np.ndarray, "images references"]
    counts: Int[Array | np.ndarray, " images"]
    positions: Int[Array | np.ndarray, " longest"]

    def select(self, index: Int[Array, " batch"]) -> tuple[Words, Bool[Array, "batch references"]]:
        """Returns the references of images, and True for references, False for padding.

        Args:
            index: indices of the images in the split; images with a negative index have undefined references.
        """
        words = jnp.minimum(self.starts[index][..., None] + self.positions, len(self.keys) - 1)
        is_reference = jnp.arange(self.starts.shape[-1]) < self.counts[index][:, None]
        return Words(self.keys[words], self.lengths[index]), is_reference


def build_reference_table(
    keys: UInt32[np.ndarray, "words 2"], lengths: Int[np.ndarray, " captions"], captions_per_image: Sequence[int]
) -> ReferenceTable:
    """Builds the table, on the host.

    Args:
        keys: keys of the words of all captions, in the order of the images.
        lengths: number of words of each caption. Words after the first `MAX_WORDS` are not used.
        captions_per_image: number of captions of each image.
    """
    counts = np.array(captions_per_image, np.int32)
    columns = max(1, counts.max(initial=0))
    image = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((2, len(counts), columns), np.int32)
    table[0, image, column] = np.cumsum(lengths) - lengths
    table[1, image, column] = np.minimum(lengths, MAX_WORDS)
    longest = max(1, table[1].max(initial=0))
    keys = keys if len(keys) else np.zeros((1, 2), np.uint32)
    return ReferenceTable(keys, table[0], table[1], counts, np.arange(longest, dtype=np.int32))
