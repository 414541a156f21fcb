"""Special tokens and their ids, in the layout of RoBERTa, which full and compact ids share; no imports."""

from __future__ import annotations

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # in the order of their ids
MASK = "<mask>"  # its id is the tokenizer's own: the last of RoBERTa's, where there is one
FEWEST_TOKENS = len(SPECIALS) + 1 + 256  # of a byte-level tokenizer that is trained here: specials, <mask>, the bytes
