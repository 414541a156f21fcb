"""CIDEr-D (Vedantam, Zitnick and Parikh, 2015), which pycocoevalcap calls CIDEr."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.bleu import find
from caption_jax.metrics.ngrams import LONGEST, CountedCaptions, NGramCounts
from input_pipeline.errors import DataError

_SIGMA = 6.0  # width of the penalty on differences in length, in words


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images' references each n-gram occurs; from a large corpus, for scoring few images or for a reward.

    Attributes:
        images: number of images of the corpus.
        counts: n-gram (words joined by spaces) -> number of images.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Counts tokenized references, given image by image."""
        counts: Counter[str] = Counter()
        images = 0
        for captions in references:
            images += 1
            counts.update({ngram for caption in captions for ngram in _ngrams(caption.split())})
        return cls(images, counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a gzipped text file: the number of images, then a line `count<TAB>n-gram` for each."""
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write(json.dumps({"images": self.images, "ngrams": len(self.counts)}) + "\n")
            file.writelines(f"{count}\t{ngram}\n" for ngram, count in self.counts.items())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DocumentFrequencies:
        """Reads what `save` wrote.

        Raises:
            DataError: the file is something else, or was cut off.
        """
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                header = json.loads(file.readline())
                rows = (line.rstrip("\n").split("\t") for line in file)
                counts = {ngram: int(count) for count, ngram in rows}
            if len(counts) != header["ngrams"]:
                raise ValueError(f"{len(counts)} n-grams where the header says {header['ngrams']}")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise DataError(f"{path} is not a whole file of document frequencies: {error}") from error
        return cls(header["images"], counts)


def cider_d(
    captions: CountedCaptions,
    references: int,
    image_of: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None = None,
) -> Float[np.ndarray, " images"]:
    """CIDEr-D of each image.

    Args:
        captions: the references, then one hypothesis for each image in order.
        references: how many of the captions are references.
        image_of: index of each caption's image; those of the references ascend.
        frequencies: a corpus's; None for those of the references here.
    """
    images = len(image_of) - references
    log_images = np.log(float(frequencies.images if frequencies else images))
    # COCO's tools take as length the number of two-word n-grams.
    length = np.maximum(0, captions.lengths - 1)
    difference = (length[references:][image_of[:references]] - length[:references]).astype(float)
    penalty = np.exp(-(difference**2) / (2 * _SIGMA**2))
    total = np.zeros(references)
    for n in range(1, LONGEST + 1):
        counts = captions.counts[n - 1]
        documents = _documents(captions, n, references, image_of, frequencies)
        weight = counts.count * (log_images - np.log(np.maximum(1.0, documents)))[counts.ngram]
        total += _similarity(counts, weight, references, image_of) * penalty
    of_image = np.bincount(image_of[:references], total, images)
    return 10.0 * of_image / LONGEST / np.bincount(image_of[:references], minlength=images)


def _documents(
    captions: CountedCaptions,
    n: int,
    references: int,
    image_of: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None,
) -> Float[np.ndarray, " ngrams"]:
    """Number of images whose references have each n-gram."""
    counts = captions.counts[n - 1]
    if frequencies is not None:
        texts = (captions.text(n, ngram) for ngram in range(counts.size))
        return np.array([frequencies.counts.get(text, 0) for text in texts], float)
    of_reference = counts.caption < references
    pairs = np.sort(image_of[counts.caption[of_reference]] * max(1, counts.size) + counts.ngram[of_reference])
    different = np.diff(pairs, prepend=-1) != 0
    return np.bincount(pairs[different] % max(1, counts.size), minlength=counts.size).astype(float)


def _similarity(
    counts: NGramCounts,
    weight: Float[np.ndarray, " rows"],
    references: int,
    image_of: Int[np.ndarray, " captions"],
) -> Float[np.ndarray, " references"]:
    """Clipped cosine of each reference and its image's hypothesis, for one n."""
    norm = np.sqrt(np.bincount(counts.caption, weight**2, len(image_of)))
    key = image_of[counts.caption] * max(1, counts.size) + counts.ngram
    of_reference = counts.caption < references
    rows = np.flatnonzero(of_reference)
    hypothesis_rows = np.flatnonzero(~of_reference)  # ordered by image and n-gram, so their keys ascend
    found, place = find(key[hypothesis_rows], key[rows])
    reference_weight = weight[rows[found]]
    product = np.minimum(weight[hypothesis_rows[place]], reference_weight) * reference_weight
    dot = np.bincount(counts.caption[rows[found]], product, references)[:references].astype(float)
    scale = norm[references:][image_of[:references]] * norm[:references]
    return np.divide(dot, scale, out=dot, where=scale != 0)


def _ngrams(words: list[str]) -> Iterable[str]:
    for n in range(1, LONGEST + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])
