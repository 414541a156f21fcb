"""Two sets of implementations of all operations, fast and reference. A model uses one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from caption_jax.ops import (
    attend,
    caption_attention,
    convolution,
    cross_entropy,
    dense,
    depthwise,
    dropout,
    int8_product,
    norm_activation,
    pointwise,
    resample,
    top_k,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Ops:
    """One implementation of every operation. It is a static attribute of modules.

    Each operation is documented at its reference implementation, such as `dense.dense_reference`.

    Attributes:
        name: "fast" or "reference".
        dense: matrix product with a kernel.
        int8_product: matrix product with a kernel of 8-bit integers.
        convolve: convolution.
        pointwise_conv: 1 x 1 convolution.
        scaled_pointwise_conv: 1 x 1 convolution of channels with a factor per image.
        depthwise_conv: depthwise convolution.
        norm_activation: batch norm with the statistics of the batch, followed by an activation.
        stored_norm_activation: batch norm with stored statistics, followed by an activation.
        dropout: dropout.
        attend: scaled dot-product attention.
        caption_attention: causal self-attention of captions in packed rows.
        memory_attention: cross-attention of captions in packed rows to the memory of their image.
        vocabulary_cross_entropy: cross-entropy, given hidden states and an output layer.
        resample: bilinear crop and resize, for augmentation.
        top_k: the k largest of many values and their indices, for beam search.
    """

    name: str
    dense: Callable[..., Any]
    int8_product: Callable[..., Any]
    convolve: Callable[..., Any]
    pointwise_conv: Callable[..., Any]
    scaled_pointwise_conv: Callable[..., Any]
    depthwise_conv: Callable[..., Any]
    norm_activation: Callable[..., Any]
    stored_norm_activation: Callable[..., Any]
    dropout: Callable[..., Any]
    attend: Callable[..., Any]
    caption_attention: Callable[..., Any]
    memory_attention: Callable[..., Any]
    vocabulary_cross_entropy: Callable[..., Any]
    resample: Callable[..., Any]
    top_k: Callable[..., Any]

    def __repr__(self) -> str:
        return f"<{self.name} ops>"


FAST = Ops(
    name="fast",
    dense=dense.dense,
    int8_product=int8_product.int8_product,
    convolve=convolution.convolve,
    pointwise_conv=pointwise.pointwise_conv,
    scaled_pointwise_conv=pointwise.scaled_pointwise_conv,
    depthwise_conv=depthwise.depthwise_conv,
    norm_activation=norm_activation.norm_activation,
    stored_norm_activation=norm_activation.stored_norm_activation,
    dropout=dropout.dropout,
    attend=attend.attend,
    caption_attention=caption_attention.caption_attention,
    memory_attention=caption_attention.memory_attention,
    vocabulary_cross_entropy=cross_entropy.vocabulary_cross_entropy,
    resample=resample.resample,
    top_k=top_k.top_k,
)

REFERENCE = Ops(
    name="reference",
    dense=dense.dense_reference,
    int8_product=int8_product.int8_product_reference,
    convolve=convolution.convolve_reference,
    pointwise_conv=pointwise.pointwise_conv_reference,
    scaled_pointwise_conv=pointwise.scaled_pointwise_conv_reference,
    depthwise_conv=depthwise.depthwise_conv_reference,
    norm_activation=norm_activation.norm_activation_reference,
    stored_norm_activation=norm_activation.stored_norm_activation_reference,
    dropout=dropout.dropout_reference,
    attend=attend.attend_reference,
    caption_attention=caption_attention.caption_attention_reference,
    memory_attention=caption_attention.memory_attention_reference,
    vocabulary_cross_entropy=cross_entropy.vocabulary_cross_entropy_reference,
    resample=resample.resample_reference,
    top_k=top_k.top_k_reference,
)

IMPLEMENTATIONS = {ops.name: ops for ops in (FAST, REFERENCE)}
