"""Captions laid end to end in rows, for steps that compute nothing for the pads between them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32

from input_pipeline.special_tokens import PAD

_UNIT = 128  # tokens
_SIZES = 32  # most lengths that rows can have: a step is compiled for each one that occurs


def pack_captions(
    tokens: Int32[np.ndarray, "batch captions length"], mask: Bool[np.ndarray, " batch"], rows: int
) -> dict[str, Int32[np.ndarray, "rows packed"]]:
    """Packs what a decoder reads and predicts: of each caption all tokens but </s>, and all but <s>.

    A row holds the captions of batch / `rows` consecutive images. Pads are left out, and so are images that could not
    be read. The length of the rows is rounded up so that few lengths occur.

    Args:
        tokens: captions, from <s> to </s>, then pads.
        mask: False for an image that could not be read.
        rows: number of rows; divides the batch.

    Returns:
        "inputs" and "targets", token ids; "segment_ids", the number of each token's caption in its row, from 1 on, and
        0 for the padding at the end of a row; "positions", that of each token in its caption, from 0 on.
    """
    inputs, targets = (part.reshape(rows, -1) for part in (tokens[..., :-1], tokens[..., 1:]))
    real = (targets != PAD) & np.repeat(mask.reshape(rows, -1), targets.size // mask.size, axis=1)
    most, count = real.shape[1], max(int(real.sum(1).max()), 1)
    unit = _UNIT * -(-most // (_UNIT * _SIZES))
    shape = rows, min(-(-count // unit) * unit, most)
    packed = {"inputs": np.full(shape, PAD, np.int32), "targets": np.full(shape, PAD, np.int32)}
    packed |= {"segment_ids": np.zeros(shape, np.int32), "positions": np.zeros(shape, np.int32)}
    for row in range(rows):
        slots = np.flatnonzero(real[row])
        filled = row, slice(len(slots))
        packed["inputs"][filled], packed["targets"][filled] = inputs[row, slots], targets[row, slots]
        packed["segment_ids"][filled], packed["positions"][filled] = np.divmod(slots, tokens.shape[-1] - 1)
        packed["segment_ids"][filled] += 1
    return packed
