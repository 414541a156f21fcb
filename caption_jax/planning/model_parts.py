"""Parts of the programs of a run, such as self-attention, the loss and the optimizer.

The part of an operation is determined by its path in the traced program, which contains the names of Flax modules and
of `jax.named_scope`, such as "jit(step)/transpose(jvp(objectives))/captions/decoder/layer_0/self_attention/qkv/dot".
"""

from __future__ import annotations

import re

OTHER = "other"

# Parts, by pattern in the path of an operation. The first match applies.
_PATTERNS = {
    "encoder, squeeze and excitation": r"backbone.*/squeeze",
    "encoder, depthwise": r"backbone.*/depthwise",
    "encoder, 1 x 1": r"backbone.*/(expand|project|head)",
    "encoder, stem": r"backbone/stem",
    "encoder, other": r"image_encoder",
    "text encoder": r"text_encoder",
    "contrastive objective": r"joint_embedding|/contrastive/",
    "loss": r"cross_entropy|output_layer|\._logits",
    "dropout": r"[dD]ropout",
    "norms": r"decoder.*_norm",
    "attention projections": r"_attention/(.*/)?(qkv|query|key_value|out)/",
    "self-attention": r"self_attention",
    "cross-attention": r"cross_attention|project_memory",
    "feed-forward": r"feed_forward",
    "embedding": r"\._embed",
    "decoder, other": r"decoder",
    "other objectives": r"objectives",
    "augmentation": r"augmentation",
    "optimizer": r"optimizer",
    "decoding": r"decoding",
}
_COMPILED = {part: re.compile(pattern) for part, pattern in _PATTERNS.items()}

PARTS = (*_PATTERNS, OTHER)


def find_part(path: str) -> str:
    """Returns the part that an operation belongs to, one of `PARTS`.

    Args:
        path: path of the operation in the traced program; "" if unknown.
    """
    return next((part for part, pattern in _COMPILED.items() if pattern.search(path)), OTHER)


def is_backward(path: str) -> bool:
    """Returns whether an operation belongs to the backward pass.

    The gradient of the loss is computed in the forward pass (`ops.cross_entropy`).
    """
    return "transpose(" in path and find_part(path) != "loss"
