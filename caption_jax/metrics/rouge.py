"""ROUGE-L (Lin, 2004) matching COCO's tools: maximum recall and precision over the references, with beta = 1.2."""

from __future__ import annotations

from collections.abc import Sequence

BETA_SQUARED = 1.2**2


def rouge_l(hypothesis: str, references: Sequence[str]) -> float:
    """Computes ROUGE-L of one tokenized caption against its references.

    Captions are split at single spaces, so an empty caption consists of one empty word, which matches an empty
    reference. COCO's tools behave the same way.
    """
    words = hypothesis.split(" ")
    masks: dict[str, int] = {}
    for position, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _compute_lcs_length(masks, len(words), reference_words)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA_SQUARED) * precision * recall / (recall + BETA_SQUARED * precision)


def _compute_lcs_length(masks: dict[str, int], length: int, words: list[str]) -> int:
    """Returns the length of the longest common subsequence of `words` and a sequence of `length` words.

    `masks` maps each word of the sequence to a bit mask of its positions. A column of the dynamic programming table is
    stored in the bits of an integer (Hyyro, 2004), where a zero bit stands for an increment of one.
    """
    all_ones = (1 << length) - 1
    column = all_ones
    for word in words:
        mask = masks.get(word)
        if mask is not None:
            matches = column & mask
            column = (column + matches | column - matches) & all_ones
    return length - column.bit_count()
