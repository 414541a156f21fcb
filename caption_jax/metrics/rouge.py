"""ROUGE-L (Lin, 2004) as COCO's tools compute it: best recall and best precision over the references, beta 1.2."""

from __future__ import annotations

from collections.abc import Sequence

_BETA_SQUARED = 1.2**2


def rouge_l(hypothesis: str, references: Sequence[str]) -> float:
    """ROUGE-L of one tokenized caption against its references.

    Words are what single spaces separate. So an empty caption has one empty word, which matches that of an empty
    reference: COCO's tools count it so.
    """
    words = hypothesis.split(" ")
    masks: dict[str, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split(" ")
        common = _common_subsequence(masks, len(words), reference_words)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(reference_words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA_SQUARED) * precision * recall / (recall + _BETA_SQUARED * precision)


def _common_subsequence(masks: dict[str, int], length: int, words: list[str]) -> int:
    """Length of the longest common subsequence of `words` and the sequence whose places of each word are `masks`.

    One column of the usual table lives in the bits of one integer (Hyyro, 2004): a zero bit is a step of one.
    """
    everything = (1 << length) - 1
    column = everything
    for word in words:
        mask = masks.get(word)
        if mask is not None:
            matches = column & mask
            column = (column + matches | column - matches) & everything
    return length - column.bit_count()
