"""CIDEr-D (Vedantam, Zitnick and Parikh, 2015), called CIDEr in pycocoevalcap."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

import numpy as np
from jaxtyping import Float, Int

from caption_jax.metrics.argument_checks import check_captions
from caption_jax.metrics.bleu import match_keys
from caption_jax.metrics.ngrams import MAX_ORDER, CountedCaptions, NGramCounts
from input_pipeline.errors import DataError, MissingFileError
from input_pipeline.safe_open import UnreadableFileError, open_file

SIGMA = 6.0  # standard deviation of the Gaussian length penalty, in words
_MAX_LINE_BYTES = 1 << 16  # of a file of document frequencies
_MAX_NGRAMS = 20_000_000


@dataclasses.dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies: for each n-gram, the number of images whose references contain it.

    Frequencies from a large corpus are useful when scoring a small set of images or computing a reward.

    Attributes:
        images: number of images in the corpus.
        counts: n-gram (words joined by spaces) -> number of images.
    """

    images: int
    counts: Mapping[str, int]

    @classmethod
    def from_references(cls, references: Iterable[Sequence[str]]) -> DocumentFrequencies:
        """Counts n-grams in tokenized references, grouped by image.

        Args:
            references: the captions of each image, such as the values of the first result of `tokenize_pair`.

        Raises:
            TypeError: the captions of an image are a single string, or `references` is a mapping instead of its values.
        """
        if isinstance(references, Mapping):
            raise TypeError("references must be lists of captions, one per image: pass references.values()")
        counts: Counter[str] = Counter()
        images = 0
        for captions in references:
            captions = check_captions("the references of an image", captions)
            images += 1
            counts.update({ngram for caption in captions for ngram in _iterate_ngrams(caption.split())})
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
            with open_file(path) as compressed, gzip.open(compressed) as file:
                return cls(*_read_frequencies(file))
        except MissingFileError:
            raise
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = error.reason if isinstance(error, UnreadableFileError) else str(error)
            raise DataError(f"{path} is not a valid document frequency file: {reason}") from error


def _read_frequencies(file: IO[bytes]) -> tuple[int, dict[str, int]]:
    """Reads the number of images and the counts. Stops after the number of n-grams that the header declares."""
    header = json.loads(file.readline(_MAX_LINE_BYTES))
    images, ngrams = header["images"], header["ngrams"]
    if not (isinstance(images, int) and isinstance(ngrams, int) and images > 0 and 0 <= ngrams <= _MAX_NGRAMS):
        raise ValueError("its header has no valid numbers of images and n-grams")
    counts: dict[str, int] = {}
    lines = 0
    while line := file.readline(_MAX_LINE_BYTES):
        lines += 1
        if lines > ngrams or not line.endswith(b"\n"):
            raise ValueError(f"line {lines + 1} is too long, or is one too many")
        count, ngram = line.decode()[:-1].split("\t")
        counts[ngram] = int(count)
    if len(counts) != ngrams:
        raise ValueError(f"expected {ngrams} n-grams, got {len(counts)}")
    return images, counts


def cider_d(
    captions: CountedCaptions,
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None = None,
) -> Float[np.ndarray, " images"]:
    """Computes CIDEr-D per image.

    Args:
        captions: all references, followed by one hypothesis per image.
        num_references: number of leading captions that are references.
        image_index: image index of each caption, in ascending order for the references.
        frequencies: document frequencies of a corpus; computed from the references if None.
    """
    num_images = len(image_index) - num_references
    log_images = np.log(float(frequencies.images if frequencies else num_images))
    # COCO's tools define the length of a caption as its number of bigrams.
    length = np.maximum(0, captions.lengths - 1)
    reference_image = image_index[:num_references]
    difference = (length[num_references:][reference_image] - length[:num_references]).astype(float)
    penalty = np.exp(-(difference**2) / (2 * SIGMA**2))
    total = np.zeros(num_references)
    for n in range(1, MAX_ORDER + 1):
        counts = captions.counts[n - 1]
        document_counts = _count_documents(captions, n, num_references, image_index, frequencies)
        weight = counts.count * (log_images - np.log(np.maximum(1.0, document_counts)))[counts.ngram]
        total += _compute_clipped_cosines(counts, weight, num_references, image_index) * penalty
    per_image = np.bincount(reference_image, total, num_images)
    return 10.0 * per_image / MAX_ORDER / np.bincount(reference_image, minlength=num_images)


def _count_documents(
    captions: CountedCaptions,
    n: int,
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
    frequencies: DocumentFrequencies | None,
) -> Float[np.ndarray, " ngrams"]:
    """Counts, for each n-gram, the images whose references contain it."""
    counts = captions.counts[n - 1]
    if frequencies is not None:
        ngrams = (captions.ngram_text(n, ngram) for ngram in range(counts.num_ngrams))
        return np.array([frequencies.counts.get(ngram, 0) for ngram in ngrams], float)
    is_reference = counts.caption < num_references
    base = max(1, counts.num_ngrams)
    keys = np.sort(image_index[counts.caption[is_reference]] * base + counts.ngram[is_reference])
    is_first = np.diff(keys, prepend=-1) != 0
    return np.bincount(keys[is_first] % base, minlength=counts.num_ngrams).astype(float)


def _compute_clipped_cosines(
    counts: NGramCounts,
    weight: Float[np.ndarray, " entries"],
    num_references: int,
    image_index: Int[np.ndarray, " captions"],
) -> Float[np.ndarray, " references"]:
    """Computes the clipped cosine similarity between each reference and its hypothesis, for n-grams of one order."""
    norm = np.sqrt(np.bincount(counts.caption, weight**2, len(image_index)))
    key = image_index[counts.caption] * max(1, counts.num_ngrams) + counts.ngram
    is_reference = counts.caption < num_references
    reference_entries = np.flatnonzero(is_reference)
    hypothesis_entries = np.flatnonzero(~is_reference)  # ordered by image and n-gram, so their keys are sorted
    matches, position = match_keys(key[hypothesis_entries], key[reference_entries])
    matched_entries = reference_entries[matches]
    reference_weight = weight[matched_entries]
    product = np.minimum(weight[hypothesis_entries[position]], reference_weight) * reference_weight
    dot = np.bincount(counts.caption[matched_entries], product, num_references)[:num_references].astype(float)
    scale = norm[num_references:][image_index[:num_references]] * norm[:num_references]
    return np.divide(dot, scale, out=dot, where=scale != 0)


def _iterate_ngrams(words: list[str]) -> Iterable[str]:
    for n in range(1, MAX_ORDER + 1):
        for start in range(len(words) - n + 1):
            yield " ".join(words[start : start + n])
