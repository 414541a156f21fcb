"""Which tokens of a batch are no pads, for steps that compute nothing for pads."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32

from input_pipeline.special_tokens import PAD

_UNIT = 128  # tokens
_SIZES = 32  # the most sizes that batches can have: a step is compiled for each one that occurs


def packed_places(tokens: Int32[np.ndarray, "batch captions length"], mask: np.ndarray, groups: int) -> np.ndarray:
    """Places of the tokens that a decoder reads to predict another: all but pads, </s> and what unreadable images have.

    Args:
        tokens: captions, from <s> to </s>, then pads.
        mask: bool [batch], False where the image could not be read.
        groups: parts of the batch, of as many images each, that are packed by themselves.

    Returns:
        int32 [groups, packed]: numbers among the tokens [batch / groups, captions, length - 1] of a group, in order;
        their count stands in places that are left over. `packed` is rounded up so that few sizes occur.
    """
    real = ((tokens[..., 1:] != PAD) & mask[:, None, None]).reshape(groups, -1)
    most, count = real.shape[1], max(int(real.sum(1).max()), 1)
    unit = _UNIT * -(-most // (_UNIT * _SIZES))
    places = np.full((groups, min(-(-count // unit) * unit, most)), most, np.int32)
    for group, row in enumerate(real):
        found = np.flatnonzero(row)
        places[group, : len(found)] = found
    return places
