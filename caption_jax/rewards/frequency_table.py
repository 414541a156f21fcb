"""Document frequencies of n-grams as arrays, for CIDEr-D on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from caption_jax.rewards.ngram_matches import NGrams
from caption_jax.rewards.sorted_keys import find_keys, never_empty, sort_keys


class FrequencyTable(NamedTuple):
    """Inverse document frequencies of the n-grams that occur in the references of at least two images.

    CIDEr-D treats n-grams of no image like those of one image, so they need not be stored.

    Attributes:
        keys: sorted keys of the n-grams.
        weights: logarithm of the number of images divided by the document frequency.
        default_weight: weight of all other n-grams, the logarithm of the number of images.
    """

    keys: UInt32[Array | np.ndarray, "ngrams 2"]
    weights: Float[Array | np.ndarray, " ngrams"]
    default_weight: Float[Array | np.ndarray, ""]

    def weigh(self, ngrams: NGrams) -> Float[Array, "*captions orders words"]:
        """Returns the tf-idf weights of n-grams, 0 where the count is 0."""
        index, is_stored = find_keys(self.keys, ngrams.keys)
        return ngrams.counts * jnp.where(is_stored, self.weights[index], self.default_weight)


def build_frequency_table(
    keys: UInt32[np.ndarray, "ngrams 2"], frequencies: Int[np.ndarray, " ngrams"], images: int
) -> FrequencyTable:
    """Builds the table of distinct n-grams, on the host.

    Args:
        keys: keys of the n-grams.
        frequencies: number of images whose references contain each of them.
        images: number of images.
    """
    is_stored: Bool[np.ndarray, " ngrams"] = frequencies >= 2
    log_images = np.log(float(images))
    stored = never_empty(keys[is_stored])
    weights = np.full(len(stored), log_images)
    weights[: is_stored.sum()] -= np.log(frequencies[is_stored])
    order = sort_keys(stored)
    return FrequencyTable(stored[order], weights[order].astype(np.float32), np.float32(log_images))
