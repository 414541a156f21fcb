"""Captions with every kind of word of which the tokenization differs, and the scores of the metrics on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caption_jax.metrics import DocumentFrequencies
from caption_jax.metrics.bleu import bleu, bleu_statistics
from caption_jax.metrics.cider import cider_d
from caption_jax.metrics.ngrams import count_ngrams
from caption_jax.metrics.ptb import tokenize_all
from caption_jax.metrics.rouge import rouge_l
from input_pipeline.records import Record, Split
from input_pipeline.special_tokens import EOS
from input_pipeline.tokenizer import Tokenizer, Vocabulary

CAPTIONS = (
    ("A dog runs on the beach .", "The brown dog is running, fast!", "a dog and another dog on a beach"),
    ("Two people don't walk; they sit.", "two people sit on a bench.", "Two people cannot walk"),
    ("A man in a t-shirt jumps over the man's bike .", "A man's bike-rack", "a man, jumping", "A man jumps"),
    ("At 10:30 o'clock, 1,000 birds fly over the cafe\u0301 and the caf\u00e9.", "birds fly"),
    ('A sign says " stop " (in red) .', "the sign says \u201cstop\u201d and #1", "A red sign ."),
    ("A black-and-white cat -- the cat sleeps ...", "a cat sleeps on a cat", "A cat / a kitten sleeps"),
    ("Mr. Smith's dog isn't on the couch & it's the dog's couch", "A dog on a couch", "a couch"),
    ("dog dog dog dog dog", "a dog", "The."),
)


def make_split(captions: Sequence[Sequence[str]] = CAPTIONS) -> Split:
    """Returns a split of images with these captions."""
    return Split("train", [Record(bytes, tuple(texts), number) for number, texts in enumerate(captions)])


def make_vocabulary(split: Split, size: int = 400) -> Vocabulary:
    """Returns a vocabulary of all tokens of a tokenizer that splits many words."""
    tokenizer = Tokenizer.train(split.captions, size)
    return Vocabulary(tokenizer, range(tokenizer.size))


class HostScores:
    """Scores of the metrics on the host, where captions may end with the word </s>.

    Args:
        split: the training split, whose images are also those that are scored.
        include_end: whether </s> is a word.
    """

    def __init__(self, split: Split, *, include_end: bool = True):
        self._include_end = include_end
        tokens = iter(tokenize_all(split.captions))
        end = " </s>" if include_end else ""
        self._references = [[f"{next(tokens)}{end}" for _ in record.captions] for record in split]
        self._frequencies = DocumentFrequencies.from_references(self._references)

    def tokenize(self, vocabulary: Vocabulary, ids: np.ndarray) -> str:
        """Returns the words of token ids after <s>, joined by spaces."""
        words = tokenize_all([vocabulary.decode(ids)])[0]
        return f"{words} </s>".strip() if self._include_end and EOS in ids else words

    def score(self, image: int, caption: str) -> Mapping[str, float]:
        """Scores a tokenized caption of an image."""
        references = self._references[image]
        counted = count_ngrams([*references, caption])
        index = np.zeros(len(references) + 1, np.int64)
        statistics = bleu_statistics(counted, len(references), index)
        return {
            "cider_d": float(cider_d(counted, len(references), index, self._frequencies)[0]),
            "bleu_4": float(bleu(statistics)[0, -1]),
            "rouge_l": rouge_l(caption, references) if caption else 0.0,
        }

    def score_pair(self, caption: str, reference: str) -> float:
        """Returns CIDEr-D of a tokenized caption and a single reference."""
        counted = count_ngrams([reference, caption])
        return float(cider_d(counted, 1, np.zeros(2, np.int64), self._frequencies)[0])
