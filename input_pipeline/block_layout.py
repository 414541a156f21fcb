"""Number and length of the blocks into which captions are packed, chosen so that every batch of a run fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from input_pipeline.records import Split
from input_pipeline.special_tokens import PAD

if TYPE_CHECKING:
    from input_pipeline.tokenizer import Vocabulary

_CAPTIONS_AT_ONCE = 10_000  # captions per call of the tokenizer


@dataclass(frozen=True)
class BlockLayout:
    """Blocks of a row: one per image, and extra blocks for captions that do not fit in the block of their image.

    Attributes:
        length: tokens per block.
        extra: number of extra blocks per row.
    """

    length: int
    extra: int

    def count_tokens(self, images: int) -> int:
        """Returns the number of tokens of a row with `images` images, including padding."""
        return (images + self.extra) * self.length


def choose_layout(
    tokens_per_image: Int[np.ndarray, " images"],
    epochs: Iterable[Int[np.ndarray, " images"]],
    images: int,
    lengths: Sequence[int],
    microbatches: int = 1,
) -> BlockLayout:
    """Returns the layout with the fewest tokens per row that has enough blocks for each row of a run.

    The order of the images of a run is known, so the number of blocks that a row needs is known as well. It is computed
    for all rows that could start at any image, and thus also for runs that resume with another batch size.

    Args:
        tokens_per_image: maximum number of target tokens per step, by image of the split.
        epochs: indices of the images in the order of training, for each epoch of the run.
        images: number of images per row.
        lengths: block lengths to choose from; each is at least the length of the longest caption.
        microbatches: number of microbatches; a row contains every `microbatches`-th image of consecutive images.
    """
    extra = np.stack([count_extra_blocks(tokens_per_image, length) for length in lengths])
    most = _find_most_in_row(extra, epochs, images, microbatches) if extra.any() else np.zeros(len(lengths), int)
    layouts = [BlockLayout(length, int(count)) for length, count in zip(lengths, most, strict=True)]
    return min(layouts, key=lambda layout: (layout.count_tokens(images), layout.length))


def count_extra_blocks(tokens: Int[np.ndarray, "..."], length: int) -> Int[np.ndarray, "..."]:
    """Returns an upper bound on the blocks that an image needs after its first, for its total number of tokens.

    Each caption is in the first block with space for it (first fit), so any two blocks of an image together contain at
    least length + 1 tokens, and n blocks at least n * (length + 1) / 2.
    """
    return np.maximum(2 * tokens // (length + 1), 1) - 1


def count_tokens_per_image(
    split: Split, vocabulary: Vocabulary, max_length: int, captions_per_image: int
) -> Int[np.ndarray, " images"]:
    """Returns the maximum number of target tokens per image, over all choices of `captions_per_image` captions.

    Args:
        split: the training split.
        vocabulary: encodes captions.
        max_length: maximum number of tokens per caption, including <s> and </s>.
        captions_per_image: captions per image per step; images with fewer captions repeat them.
    """
    lengths = _count_targets([caption for record in split for caption in record.captions], vocabulary, max_length)
    totals, start = np.full(len(split), captions_per_image), 0  # without captions, empty ones of a single target
    for index, record in enumerate(split):
        count = len(record.captions)
        longest_first = -np.sort(-lengths[start : start + count])
        start += count
        if count:
            repetitions, remainder = divmod(captions_per_image, count)
            totals[index] = repetitions * longest_first.sum() + longest_first[:remainder].sum()
    return totals


def _count_targets(captions: Sequence[str], vocabulary: Vocabulary, max_length: int) -> Int[np.ndarray, " captions"]:
    counts = [np.zeros(0, int)]
    for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
        tokens = vocabulary.encode_batch(captions[start : start + _CAPTIONS_AT_ONCE], max_length)
        counts.append((tokens[:, 1:] != PAD).sum(1))
    return np.concatenate(counts)


def _find_most_in_row(
    extra: Int[np.ndarray, "lengths images"],
    epochs: Iterable[Int[np.ndarray, " images"]],
    images: int,
    microbatches: int,
) -> Int[np.ndarray, " lengths"]:
    """Returns the largest sum of `extra` over the images of a row, over all rows of all epochs."""
    most = np.zeros(len(extra), int)
    window = (images - 1) * microbatches + 1  # distance of the first and last image of a row, plus one
    sequence = np.zeros((len(extra), 0), int)
    for order in epochs:
        sequence = np.concatenate([sequence[:, max(sequence.shape[1] - window + 1, 0) :], extra[:, order]], axis=1)
        for offset in range(microbatches):
            sums = np.cumsum(sequence[:, offset::microbatches], axis=1)
            if sums.shape[1]:
                sums[:, images:] -= sums[:, :-images].copy()
                most = np.maximum(most, sums.max(axis=1))
    return most
