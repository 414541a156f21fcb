"""Packs captions end to end in rows, so that training steps waste no computation on padding between them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32

from input_pipeline.special_tokens import PAD

_LENGTH_MULTIPLE = 128  # row lengths are multiples of this number of tokens
_MAX_LENGTHS = 32  # maximum number of distinct row lengths, because the step is compiled once per length


def pack_captions(
    tokens: Int32[np.ndarray, "batch captions length"], mask: Bool[np.ndarray, " batch"], rows: int
) -> dict[str, Int32[np.ndarray, "rows packed"]]:
    """Packs decoder inputs (captions without </s>) and targets (captions without <s>).

    Each row contains the captions of batch / `rows` consecutive images, without padding and without the captions of
    unreadable images. The row length is rounded up, so only a few distinct lengths occur.

    Args:
        tokens: captions from <s> to </s>, padded.
        mask: False for images that could not be read.
        rows: number of rows; must divide the batch size.

    Returns:
        "inputs" and "targets": token ids. "segment_ids": 1-based index of the caption within its row, 0 for padding at
        the end of the row. "positions": 0-based position of the token within its caption.
    """
    inputs, targets = (part.reshape(rows, -1) for part in (tokens[..., :-1], tokens[..., 1:]))
    is_token = (targets != PAD) & np.repeat(mask.reshape(rows, -1), targets.size // mask.size, axis=1)
    max_length, longest = is_token.shape[1], max(int(is_token.sum(1).max()), 1)
    multiple = _LENGTH_MULTIPLE * -(-max_length // (_LENGTH_MULTIPLE * _MAX_LENGTHS))
    shape = rows, min(-(-longest // multiple) * multiple, max_length)
    packed = {"inputs": np.full(shape, PAD, np.int32), "targets": np.full(shape, PAD, np.int32)}
    packed |= {"segment_ids": np.zeros(shape, np.int32), "positions": np.zeros(shape, np.int32)}
    for row in range(rows):
        indices = np.flatnonzero(is_token[row])
        filled = row, slice(len(indices))
        packed["inputs"][filled], packed["targets"][filled] = inputs[row, indices], targets[row, indices]
        packed["segment_ids"][filled], packed["positions"][filled] = np.divmod(indices, tokens.shape[-1] - 1)
        packed["segment_ids"][filled] += 1
    return packed
