"""CIDEr-D (Vedantam, Zitnick and Parikh, 2015), called CIDEr in pycocoevalcap."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.bleu import match_keys
from caption_jax.metrics.ngrams import LONGEST, CountedCaptions, NGramCounts
from input_pipeline.errors import DataError

_SIGMA = 6.0  # standard deviation of the Gaussian length penalty, in words


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """Number of images whose references contain each n-gram.

    Frequencies from a large corpus are useful when scoring a small set of images or computing a reward.

    Attributes:
        images: number of images in the corpus.
        counts: n-gram (words joined by spaces) -> number of images.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Counts n-grams in tokenized references, grouped by image."""
        counts: Counter[str] = Counter()
        images = 0
        for captions in references:
            images += 1
            counts.update({ngram for caption in captions for ngram in _ngrams(caption.split())})
        return cls(images, counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a gzipped text file: a JSON header with totals, then one `count<TAB>n-gram` line per n-gram."""
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(json.dumps({"images": self.images, "ngrams": len(self.counts)}) + "\n")
            file.writelines(f"{count}\t{ngram}\n" for ngram, count in self.counts.items())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Loads a file written by `save`.

        Raises:
            FileNotFoundError: the file does not exist.
            DataError: the file is truncated or in another format.
        """
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                header = json.loads(file.readline())
                rows = (line.rstrip("\n").split("\t") for line in file)
                counts = {ngram: int(count) for count, ngram in rows}
            if len(counts) != header["ngrams"]:
                raise ValueError(f"expected {header['ngrams']} n-grams, got {len(counts)}")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DataError(f"{path} is not a valid document frequency file: {error}") from error
        return cls(header["images"], counts)


def cider_d(
    captions: CountedCaptions,
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None = None,
) -> Float[np.ndarray, " images"]:
    """CIDEr-D per image.

    Args:
        captions: all references, followed by one hypothesis per image.
        num_references: number of leading captions that are references.
        image_index: image index of each caption, in ascending order for the references.
        frequencies: document frequencies of a corpus; computed from the references if None.
    """
    images = len(image_index) - num_references
    log_images = np.log(float(frequencies.images if frequencies else images))
    # COCO's tools define the length as the number of bigrams.
    length = np.maximum(0, captions.lengths - 1)
    reference_image = image_index[:num_references]
    difference = (length[num_references:][reference_image] - length[:num_references]).astype(float)
    penalty = np.exp(-(difference**2) / (2 * _SIGMA**2))
    total = np.zeros(num_references)
    for n in range(1, LONGEST + 1):
        counts = captions.counts[n - 1]
        documents = _documents(captions, n, num_references, image_index, frequencies)
        weight = counts.count * (log_images - np.log(np.maximum(1.0, documents)))[counts.ngram]
        total += _similarity(counts, weight, num_references, image_index) * penalty
    per_image = np.bincount(reference_image, total, images)
    return 10.0 * per_image / LONGEST / np.bincount(reference_image, minlength=images)


def _documents(
    captions: CountedCaptions,
    n: int,
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None,
) -> Float[np.ndarray, " ngrams"]:
    """Number of images whose references contain each n-gram."""
    counts = captions.counts[n - 1]
    if frequencies is not None:
        texts = (captions.text(n, ngram) for ngram in range(counts.size))
        return np.array([frequencies.counts.get(text, 0) for text in texts], float)
    is_reference = counts.caption < num_references
    pairs = np.sort(image_index[counts.caption[is_reference]] * max(1, counts.size) + counts.ngram[is_reference])
    is_first = np.diff(pairs, prepend=-1) != 0
    return np.bincount(pairs[is_first] % max(1, counts.size), minlength=counts.size).astype(float)


def _similarity(
    counts: NGramCounts,
    weight: Float[np.ndarray, " rows"],
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
) -> Float[np.ndarray, " references"]:
    """Clipped cosine similarity between each reference and its image's hypothesis, for one n-gram length."""
    norm = np.sqrt(np.bincount(counts.caption, weight**2, len(image_index)))
    key = image_index[counts.caption] * max(1, counts.size) + counts.ngram
    is_reference = counts.caption < num_references
    rows = np.flatnonzero(is_reference)
    hypothesis_rows = np.flatnonzero(~is_reference)  # ordered by image and n-gram, so their keys are sorted
    matches, position = match_keys(key[hypothesis_rows], key[rows])
    reference_weight = weight[rows[matches]]
    product = np.minimum(weight[hypothesis_rows[position]], reference_weight) * reference_weight
    dot = np.bincount(counts.caption[rows[matches]], product, num_references)[:num_references].astype(float)
    scale = norm[num_references:][image_index[:num_references]] * norm[:num_references]
    return np.divide(dot, scale, out=dot, where=scale != 0)


def _ngrams(words: list[str]) -> Iterable[str]:
    for n in range(1, LONGEST + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])
