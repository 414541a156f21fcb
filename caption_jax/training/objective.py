"""The captioning objective: cross-entropy of the next token."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class TokenLoss(NamedTuple):
    """Sums over tokens, so that slices of a batch add up: divide by `weight_sum` once, at the end.

    Attributes:
        loss_sum: f32 scalar, weighted cross-entropy in nats. The only field with a gradient.
        weight_sum: f32 scalar, sum of the weights.
        correct_sum: f32 scalar, weights of the tokens whose target has the largest logit.
    """

    loss_sum: Float[Array, ""]
    weight_sum: Float[Array, ""]
    correct_sum: Float[Array, ""]


def token_cross_entropy(
    logits: Float[Array, "*tokens vocabulary"],
    targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"],
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """Weighted cross-entropy in nats of integer targets, with smoothed labels, in float32.

    The target distribution is `(1 - s) * one_hot(target) + s / V` over the whole vocabulary of V tokens, the target
    included (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; the convention of PyTorch and
    `optax.smooth_labels`). Its entropy is not subtracted, so with s > 0 the least possible loss is above 0. Uniform
    logits cost ln V whatever s is.

    A token of weight 0 adds exactly 0 to each sum and to the gradient, whatever its logits are. The gradient reaches
    the logits only: targets and weights are data.

    Args:
        logits: any float type; read in place, without a float32 copy.
        targets: token ids in [0, V).
        weights: weight of each token, 0 for padding; bool and integer types serve as well.
        label_smoothing: s, in [0, 1).

    Raises:
        ValueError: the shapes do not agree, or `label_smoothing` is outside [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"objective.label_smoothing is {label_smoothing}; it has to be in [0, 1)")
    if logits.shape[:-1] != targets.shape or targets.shape != weights.shape:
        raise ValueError(
            f"logits {logits.shape} need targets and weights of shape {logits.shape[:-1]}; "
            f"they are {targets.shape} and {weights.shape}"
        )
    weights = weights.astype(jnp.float32)
    return TokenLoss(*_cross_entropy(logits, targets, weights, float(label_smoothing)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(logits, targets, weights, smoothing):
    return _forward(logits, targets, weights, smoothing)[0]


def _forward(logits, targets, weights, smoothing):
    wide = logits.astype(jnp.float32)  # fused into each reduction below, never stored
    log_normaliser = jax.nn.logsumexp(wide, axis=-1)
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0].astype(jnp.float32)
    loss = log_normaliser - (1.0 - smoothing) * target_logit
    if smoothing:
        loss -= smoothing * jnp.mean(wide, axis=-1)
    correct = jnp.argmax(logits, axis=-1) == targets
    sums = (
        jnp.sum(jnp.where(weights != 0, loss * weights, 0.0)),
        jnp.sum(weights),
        jnp.sum(jnp.where(correct, weights, 0.0)),
    )
    return sums, (logits, targets, weights, log_normaliser)


def _backward(smoothing, residuals, cotangents):
    # d loss / d logits = softmax - smoothed labels, written straight into one array of the logits' type.
    logits, targets, weights, log_normaliser = residuals
    scale = jnp.where(weights != 0, weights * cotangents[0], 0.0)[..., None]
    probabilities = jnp.exp(logits.astype(jnp.float32) - log_normaliser[..., None])
    vocabulary = logits.shape[-1]
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    labels = jnp.where(is_target, np.float32(1.0 - smoothing), 0.0) + np.float32(smoothing / vocabulary)
    gradient = jnp.where(scale != 0, scale * (probabilities - labels), 0.0)
    return gradient.astype(logits.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)
