"""What captions are like, whatever the images: variety, novelty, length, how they end."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping

from caption_jax.metrics.ptb import tokenize_all
from input_pipeline.errors import DataError

# A caption that ends in one of these was cut off, or learned from a reward that does not see endings.
_ENDINGS = """
a an the this that these those his her its their my your our some very several many each every no not
and or but nor while as if because when where who which whose
of in on at to from with without by for into onto over under near behind beside between through across along around
above below during against toward towards next off out up down
is are was were be been being am has have had do does did will would can could should may might must
"""
FUNCTION_WORDS = frozenset(_ENDINGS.split())


def diversity(hypotheses: Mapping[Hashable, str], training_captions: Iterable[str] | None = None) -> dict[str, float]:
    """Describes a set of captions by themselves; words are PTB tokens, as in `score`.

    Args:
        hypotheses: image id -> caption.
        training_captions: what the captioner was trained on; without it "novel" is left out.

    Returns:
        "distinct-1", "distinct-2": different words (pairs of words) as a share of all (Li et al., 2016); "vocabulary":
        number of different words; "unique": different captions as a share of all; "novel": share of captions that are
        no training caption; "mean_length": words a caption; "function_word_ending": share that ends in a function word.

    Raises:
        DataError: there are no captions.
    """
    if not hypotheses:
        raise DataError("there are no captions to describe")
    captions = tokenize_all(list(hypotheses.values()))
    words = [caption.split() for caption in captions]
    pairs = [pair for caption in words for pair in itertools.pairwise(caption)]
    all_words = [word for caption in words for word in caption]
    found = {
        "distinct-1": _share(len(set(all_words)), len(all_words)),
        "distinct-2": _share(len(set(pairs)), len(pairs)),
        "vocabulary": float(len(set(all_words))),
        "unique": len(set(captions)) / len(captions),
    }
    if training_captions is not None:
        known = set(tokenize_all(list(training_captions)))
        found["novel"] = sum(caption not in known for caption in captions) / len(captions)
    found["mean_length"] = len(all_words) / len(captions)
    # "riding a." has the token "a.", as if it were an initial.
    endings = sum(bool(caption) and caption[-1].rstrip(".") in FUNCTION_WORDS for caption in words)
    found["function_word_ending"] = endings / len(captions)
    return found


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
