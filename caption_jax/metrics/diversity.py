"""Reference-free statistics of generated captions: variety, novelty, length and endings."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Hashable, Iterable, Mapping

from caption_jax.metrics.argument_checks import check_captions, check_hypotheses
from caption_jax.metrics.tokenization import tokenize_captions
from input_pipeline.errors import DataError

# A caption that ends in one of these words was truncated, or its model was trained with a reward that ignores endings.
_ENDINGS = """
a an the this that these those his her its their my your our some very several many each every no not
and or but nor while as if because when where who which whose
of in on at to from with without by for into onto over under near behind beside between through across along around
above below during against toward towards next off out up down
is are was were be been being am has have had do does did will would can could should may might must
"""
FUNCTION_WORDS = frozenset(_ENDINGS.split())


def diversity(
    hypotheses: Mapping[Hashable, str], training_captions: Iterable[str] | None = None, *, tokenizer: str = "ptb"
) -> dict[str, float]:
    """Computes statistics of a set of captions. Words are the tokens of `score`.

    Args:
        hypotheses: image id -> caption.
        training_captions: the captions the model was trained on; "novel" is omitted if None.
        tokenizer: see `score`.

    Returns:
        "distinct-1", "distinct-2": number of distinct words (word pairs) divided by their total number (Li et al.,
        2016); "vocabulary": number of distinct words; "unique": number of distinct captions divided by the number of
        captions; "most_common": fraction of captions that are equal to the most frequent one; "novel": fraction of
        captions that do not occur in the training captions; "mean_length": words per caption; "function_word_ending":
        fraction of captions that end in an English function word, for "ptb" only.

    Raises:
        TypeError: `hypotheses` is not a mapping with strings as values, or `training_captions` is a single string.
        DataError: there are no captions.
        ConfigError: `tokenizer` is unknown.
    """
    check_hypotheses(hypotheses)
    if training_captions is not None:
        training_captions = check_captions("training_captions", training_captions)
    if not hypotheses:
        raise DataError("there are no captions")
    captions = tokenize_captions(list(hypotheses.values()), tokenizer)
    words = [caption.split() for caption in captions]
    word_pairs = [pair for caption in words for pair in itertools.pairwise(caption)]
    all_words = [word for caption in words for word in caption]
    metrics = {
        "distinct-1": _divide(len(set(all_words)), len(all_words)),
        "distinct-2": _divide(len(set(word_pairs)), len(word_pairs)),
        "vocabulary": float(len(set(all_words))),
        "unique": len(set(captions)) / len(captions),
        "most_common": collections.Counter(captions).most_common(1)[0][1] / len(captions),
    }
    if training_captions is not None:
        training = set(tokenize_captions(training_captions, tokenizer))
        metrics["novel"] = sum(caption not in training for caption in captions) / len(captions)
    metrics["mean_length"] = len(all_words) / len(captions)
    if tokenizer == "ptb":
        # The tokenizer treats the last letter of "riding a." as an initial and returns the token "a.".
        endings = sum(bool(caption) and caption[-1].rstrip(".") in FUNCTION_WORDS for caption in words)
        metrics["function_word_ending"] = endings / len(captions)
    return metrics


def _divide(count: int, total: int) -> float:
    return count / total if total else 0.0
