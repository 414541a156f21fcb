"""Special tokens and their ids, in RoBERTa's layout, shared by full and compact ids. Imports nothing."""

from __future__ import annotations

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # in the order of their ids
MASK = "<mask>"  # optional; its id varies by tokenizer (the last id in RoBERTa's)
MIN_VOCABULARY_SIZE = len(SPECIALS) + 1 + 256  # of a trained byte-level BPE: the special tokens, <mask> and the bytes
