"""Transfers training batches to the devices, after packing their captions if packing is enabled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import logging

from caption_jax.errors import ConfigError
from caption_jax.parameters.sharding import put_batch
from caption_jax.specs import RunSpec
from input_pipeline.block_layout import BlockLayout, choose_layout, count_tokens_per_image
from input_pipeline.image_order import make_train_order
from input_pipeline.packing import pack_blocks, pack_captions
from input_pipeline.records import Split
from input_pipeline.row_lengths import choose_lengths, sample_tokens_per_image
from input_pipeline.tokenizer import Vocabulary

Batch = dict[str, np.ndarray]

# Block lengths are multiples of this number of tokens. TPUs pad the scores of attention to 128 lanes.
_BLOCK_MULTIPLES = {"tpu": 128, "default": 32}


def make_batch_placer(
    spec: RunSpec, mesh: jax.sharding.Mesh, layout: BlockLayout | None = None, row_lengths: Sequence[int] = ()
) -> Callable[[Batch], dict[str, jax.Array]]:
    """Returns a function that transfers a training batch to the devices, packed according to `config.train.packing`.

    Captions are packed into one row per device on the data axis, so that each token is on the same device as its image.

    Args:
        spec: spec of the run.
        mesh: the device mesh.
        layout: blocks to pack captions into, see `choose_block_layout`; None for packing without blocks.
        row_lengths: lengths of rows without blocks, see `choose_row_lengths`.

    Raises:
        ConfigError: `config.train.packing` is not supported in this setup.
    """
    rows, microbatches = mesh.local_mesh.shape["data"], spec.optimizer.grad_accum_steps
    if layout is not None:
        return lambda batch: put_batch(
            {**batch, **pack_blocks(batch["tokens"], batch["mask"], rows, layout, microbatches)}, mesh
        )
    if choose_packing(spec, mesh) != "always":
        return lambda batch: put_batch(batch, mesh)
    return lambda batch: put_batch({**batch, **pack_captions(batch["tokens"], batch["mask"], rows, row_lengths)}, mesh)


def choose_packing(spec: RunSpec, mesh: jax.sharding.Mesh) -> str:
    """Returns `config.train.packing`, where "auto" is replaced with the fastest form on this platform.

    Raises:
        ConfigError: `config.train.packing` is not supported in this setup.
    """
    choice, processes, microbatches = spec.train.packing, jax.process_count(), spec.optimizer.grad_accum_steps
    is_single = processes == microbatches == 1  # rows would differ in length between processes or microbatches
    if choice == "always" and not is_single:
        raise ConfigError(
            'config.train.packing="always" requires a single process and config.optimizer.grad_accum_steps=1, got '
            f'{processes} processes and config.optimizer.grad_accum_steps={microbatches}; set packing to "blocks"'
        )
    if choice != "auto":
        return choice
    if mesh.devices.flat[0].platform != "cpu":
        return "blocks"
    return "always" if is_single else "never"


def choose_block_layout(
    spec: RunSpec, mesh: jax.sharding.Mesh, train: Split, vocabulary: Vocabulary
) -> BlockLayout | None:
    """Returns the blocks in which every batch of a run has space, the same on all processes.

    Args:
        spec: spec of the run, with resolved steps.
        mesh: the device mesh.
        train: the training split.
        vocabulary: encodes captions.

    Returns:
        The layout; None if `config.train.packing` is "auto" and blocks would not save any tokens.

    Raises:
        ConfigError: a caption could be longer than `config.train.block_length`.
    """
    data, microbatches = spec.data, spec.optimizer.grad_accum_steps
    captions = data.captions_per_image or max(len(record.captions) for record in train)
    tokens = count_tokens_per_image(train, vocabulary, data.max_length, captions)
    images = data.batch_size // (mesh.shape["data"] * microbatches)
    lengths = list_block_lengths(spec, mesh, int(tokens.max()))
    layout = choose_layout(tokens, _iterate_epochs(spec, train), images, lengths, microbatches)
    padded = images * captions * (data.max_length - 1)
    if spec.train.packing == "auto" and layout.count_tokens(images) >= padded:
        return None
    logging.info(
        "captions are packed into blocks of %d tokens, %d per device for %d images: %d tokens instead of %d",
        layout.length,
        images + layout.extra,
        images,
        layout.count_tokens(images),
        padded,
    )
    return layout


def choose_row_lengths(spec: RunSpec, mesh: jax.sharding.Mesh, train: Split, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Returns the lengths of packed rows without blocks, for each of which the training step is compiled."""
    data = spec.data
    captions = data.captions_per_image or max(len(record.captions) for record in train)
    tokens = sample_tokens_per_image(train, vocabulary, data.max_length, captions)
    return choose_lengths(tokens, data.batch_size // mesh.shape["data"])


def list_block_lengths(spec: RunSpec, mesh: jax.sharding.Mesh, most_tokens: int) -> list[int]:
    """Returns the lengths to choose from: from that of the longest caption to that of all captions of an image."""
    if 0 < spec.train.block_length < spec.data.max_length - 1:
        raise ConfigError(
            f"config.train.block_length={spec.train.block_length} is too short for captions of config.data.max_length="
            f"{spec.data.max_length} tokens: set it to at least {spec.data.max_length - 1}, or to 0 to fit the captions"
        )
    if spec.train.block_length:
        return [spec.train.block_length]
    multiple = _BLOCK_MULTIPLES.get(mesh.devices.flat[0].platform, _BLOCK_MULTIPLES["default"])
    first = math.ceil((spec.data.max_length - 1) / multiple)
    last = max(math.ceil(most_tokens / multiple), first)
    return [multiple * count for count in range(first, last + 1)]


def _iterate_epochs(spec: RunSpec, train: Split) -> Iterator[np.ndarray]:
    """Yields the order of the training images in each epoch of the run."""
    order = make_train_order(train, spec.data.shuffle_window, spec.seed)
    # The last batch may begin another epoch.
    epochs = math.ceil(spec.train.steps * spec.data.batch_size / len(train)) + 1
    return map(order.indices, range(epochs))
