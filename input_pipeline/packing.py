"""Packs captions end to end in rows, so that training steps compute nothing for padding between them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32

from input_pipeline.special_tokens import PAD

_UNIT = 128  # tokens
_MAX_LENGTHS = 32  # maximum number of distinct row lengths, because the step is compiled once per length


def pack_captions(
    tokens: Int32[np.ndarray, "batch captions length"], mask: Bool[np.ndarray, " batch"], rows: int
) -> dict[str, Int32[np.ndarray, "rows packed"]]:
    """Packs decoder inputs (captions without </s>) and targets (captions without <s>).

    Each row contains the captions of batch / `rows` consecutive images, without padding and without images that could
    not be read. The row length is rounded up so that only a few lengths occur.

    Args:
        tokens: captions from <s> to </s>, padded.
        mask: False for images that could not be read.
        rows: number of rows; must divide the batch size.

    Returns:
        "inputs" and "targets": token ids. "segment_ids": 1-based index of the caption within its row, 0 for padding at
        the end of the row. "positions": 0-based position of the token within its caption.
    """
    inputs, targets = (part.reshape(rows, -1) for part in (tokens[..., :-1], tokens[..., 1:]))
    real = (targets != PAD) & np.repeat(mask.reshape(rows, -1), targets.size // mask.size, axis=1)
    max_length, count = real.shape[1], max(int(real.sum(1).max()), 1)
    unit = _UNIT * -(-max_length // (_UNIT * _MAX_LENGTHS))
    shape = rows, min(-(-count // unit) * unit, max_length)
    packed = {"inputs": np.full(shape, PAD, np.int32), "targets": np.full(shape, PAD, np.int32)}
    packed |= {"segment_ids": np.zeros(shape, np.int32), "positions": np.zeros(shape, np.int32)}
    for row in range(rows):
        indices = np.flatnonzero(real[row])
        filled = row, slice(len(indices))
        packed["inputs"][filled], packed["targets"][filled] = inputs[row, indices], targets[row, indices]
        packed["segment_ids"][filled], packed["positions"][filled] = np.divmod(indices, tokens.shape[-1] - 1)
        packed["segment_ids"][filled] += 1
    return packed
