"""Packs captions in rows, so that training steps waste little computation on padding.

`pack_captions` concatenates all captions of a row. `pack_blocks` divides rows into blocks of equal length, each with
captions of one image, so that all batches of a run have the same shape (`input_pipeline.block_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from input_pipeline.block_layout import BlockLayout
from input_pipeline.errors import DataError
from input_pipeline.row_lengths import find_row_length
from input_pipeline.special_tokens import PAD


def pack_captions(
    tokens: Int32[np.ndarray, "batch captions length"],
    mask: Bool[np.ndarray, " batch"],
    rows: int,
    lengths: Sequence[int] = (),
) -> dict[str, Int32[np.ndarray, "rows packed"]]:
    """Packs decoder inputs (captions without </s>) and targets (captions without <s>).

    Each row contains the captions of batch / `rows` consecutive images, without padding and without the captions of
    unreadable images. All rows have the same length.

    Args:
        tokens: captions from <s> to </s>, padded.
        mask: False for images that could not be read.
        rows: number of rows; must divide the batch size.
        lengths: row lengths to choose from (`input_pipeline.row_lengths`). Longer rows are rounded up, so that only a
            few distinct lengths occur.

    Returns:
        "inputs" and "targets": token ids. "segment_ids": 1-based index of the caption within its row, 0 for padding at
        the end of the row. "positions": 0-based position of the token within its caption.
    """
    inputs, targets = (part.reshape(rows, -1) for part in (tokens[..., :-1], tokens[..., 1:]))
    is_token = (targets != PAD) & np.repeat(mask.reshape(rows, -1), targets.size // mask.size, axis=1)
    longest = int(is_token.sum(1).max())
    packed = _make_empty((rows, find_row_length(longest, lengths, is_token.shape[1])))
    for row in range(rows):
        indices = np.flatnonzero(is_token[row])
        filled = row, slice(len(indices))
        packed["inputs"][filled], packed["targets"][filled] = inputs[row, indices], targets[row, indices]
        packed["segment_ids"][filled], packed["positions"][filled] = np.divmod(indices, tokens.shape[-1] - 1)
        packed["segment_ids"][filled] += 1
    return packed


def pack_blocks(
    tokens: Int32[np.ndarray, "batch captions length"],
    mask: Bool[np.ndarray, " batch"],
    rows: int,
    layout: BlockLayout,
    microbatches: int = 1,
) -> dict[str, Int32[np.ndarray, "all_rows blocks block_length"]]:
    """Packs decoder inputs and targets into the blocks of `layout`.

    The first blocks of a row belong to its images, in order. Each caption is in the first block of its image that has
    space for it. Blocks after the first are taken from the extra blocks of the row.

    Args:
        tokens: captions from <s> to </s>, padded.
        mask: False for images that could not be read, whose blocks are empty.
        rows: number of rows per microbatch; rows x microbatches must divide the batch size.
        layout: number and length of the blocks.
        microbatches: number of microbatches. Image i of the batch belongs to microbatch i % microbatches, and so does
            row i of the result.

    Returns:
        The arrays of `pack_captions`, for rows x microbatches rows. Padding is at the end of each block.

    Raises:
        DataError: a row needs more extra blocks than it has, or a caption is longer than a block.
    """
    tokens, mask = (_group_by_row(array, rows, microbatches) for array in (tokens, mask))
    is_token = (tokens[..., 1:] != PAD) & mask[..., None, None]
    starts = _assign_starts(is_token.sum(-1), layout)
    all_rows, images, captions, _ = is_token.shape
    packed = _make_empty((all_rows, images + layout.extra, layout.length))
    row, image, caption, position = np.nonzero(is_token)
    slots = row * (images + layout.extra) * layout.length + starts[row, image, caption] + position
    values = {
        "inputs": tokens[row, image, caption, position],
        "targets": tokens[row, image, caption, position + 1],
        "segment_ids": 1 + image * captions + caption,
        "positions": position,
    }
    for name, value in values.items():
        packed[name].reshape(-1)[slots] = value
    return packed


def _assign_starts(
    lengths: Int[np.ndarray, "rows images captions"], layout: BlockLayout
) -> Int[np.ndarray, "rows images captions"]:
    """Returns the index of the first token of each caption in its row."""
    if lengths.max(initial=0) > layout.length:
        raise DataError(f"a caption of {lengths.max()} tokens does not fit in a block of {layout.length} tokens")
    used = np.zeros(lengths.shape, int)  # tokens in the first, second, ... block of each image
    block, offset = np.zeros(lengths.shape, int), np.zeros(lengths.shape, int)
    for caption in range(lengths.shape[-1]):
        length = lengths[..., caption, None]
        first_fit = np.argmax(used + length <= layout.length, axis=-1)[..., None]
        block[..., caption] = first_fit[..., 0]
        offset[..., caption] = np.take_along_axis(used, first_fit, axis=-1)[..., 0]
        np.put_along_axis(used, first_fit, np.take_along_axis(used, first_fit, axis=-1) + length, axis=-1)
    extra = np.maximum((used > 0).sum(-1) - 1, 0)
    if (needed := extra.sum(-1).max(initial=0)) > layout.extra:
        raise DataError(
            f"the captions of a batch need {needed} extra blocks of {layout.length} tokens per device, but "
            f'{layout.extra} were reserved; set config.train.packing="never"'
        )
    images = lengths.shape[1]
    first_extra = images + np.cumsum(extra, axis=-1) - extra
    index = np.where(block == 0, np.arange(images)[:, None], first_extra[..., None] + block - 1)
    return index * layout.length + offset


def _group_by_row(array: np.ndarray, rows: int, microbatches: int) -> np.ndarray:
    """Reshapes [batch, ...] to [rows * microbatches, images, ...]; see `pack_blocks`."""
    array = array.reshape(rows, -1, microbatches, *array.shape[1:]).swapaxes(1, 2)
    return array.reshape(rows * microbatches, -1, *array.shape[3:])


def _make_empty(shape: tuple[int, ...]) -> dict[str, Int32[np.ndarray, "..."]]:
    packed = {name: np.full(shape, PAD, np.int32) for name in ("inputs", "targets")}
    return packed | {name: np.zeros(shape, np.int32) for name in ("segment_ids", "positions")}
