"""Cross-entropy of the next token, from its logits or from the states that the output layer makes logits of."""

from __future__ import annotations

import functools
import math
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


def token_cross_entropy_reference(
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
        logits: any float type; the arithmetic is float32.
        targets: token ids in [0, V).
        weights: weight of each token, 0 for padding; bool and integer types serve as well.
        label_smoothing: s, in [0, 1).

    Raises:
        ValueError: the shapes do not agree, or `label_smoothing` is outside [0, 1).
    """
    _check(logits, targets, weights, label_smoothing)
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
    counted = jnp.where(weights[..., None] != 0, logits, 0).astype(jnp.float32)
    log_probs = jax.nn.log_softmax(counted, axis=-1)
    target_log_prob = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    loss = -(1 - label_smoothing) * target_log_prob
    if label_smoothing:
        loss -= label_smoothing * log_probs.mean(-1)
    correct = jnp.argmax(logits, axis=-1) == targets
    return TokenLoss((loss * weights).sum(), weights.sum(), (correct * weights).sum())


def vocabulary_cross_entropy_reference(
    states: Float[Array, "*groups tokens width"],
    table: Float[Array, "vocabulary width"],
    bias: Float[Array, " vocabulary"],
    targets: Int[Array, "*groups tokens"],
    weights: Float[Array, "*groups tokens"],
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """`token_cross_entropy_reference` of the logits `states @ table.T + bias`.

    Args:
        states: of the decoder.
        table: the output layer's.
        bias: the output layer's.
        targets: as in `token_cross_entropy_reference`.
        weights: as there.
        label_smoothing: as there.
    """
    logits = jnp.einsum("...d,vd->...v", states, table, preferred_element_type=jnp.float32) + bias
    return token_cross_entropy_reference(logits, targets, weights, label_smoothing)


def _check(logits: jax.Array, targets: jax.Array, weights: jax.Array, label_smoothing: float) -> None:
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"objective.label_smoothing is {label_smoothing}; it has to be in [0, 1)")
    if logits.shape[:-1] != targets.shape or targets.shape != weights.shape:
        raise ValueError(
            f"logits {logits.shape} need targets and weights of shape {logits.shape[:-1]}; "
            f"they are {targets.shape} and {weights.shape}"
        )


def token_cross_entropy(
    logits: Float[Array, "*tokens vocabulary"],
    targets: Int[Array, "*tokens"],
    weights: Float[Array, "*tokens"],
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """`token_cross_entropy_reference` whose gradient is written straight into one array of the logits' type.

    The logits are read in place, without a float32 copy. Measured on a CPU, with the gradient: 2.3.
    """
    _check(logits, targets, weights, label_smoothing)
    weights = weights.astype(jnp.float32)
    loss_sum, correct_sum = _cross_entropy(logits, targets, weights, float(label_smoothing))
    return TokenLoss(loss_sum, weights.sum(), correct_sum)


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


_CHUNK = 512  # tokens, over all groups


def vocabulary_cross_entropy(
    states: Float[Array, "*groups tokens width"],
    table: Float[Array, "vocabulary width"],
    bias: Float[Array, " vocabulary"],
    targets: Int[Array, "*groups tokens"],
    weights: Float[Array, "*groups tokens"],
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """`vocabulary_cross_entropy_reference`; on a CPU, only a few rows of the logits exist at a time.

    There each chunk of tokens makes its part of the loss and of the gradients while the processor's cache holds its
    logits; measured: 1.21, and no array of the logits' size. Chunks are taken along the axis `tokens`, as a mesh shards
    the others. A target is right where no logit is larger than its own. Elsewhere it is `token_cross_entropy` of all
    logits.
    """
    weights = weights.astype(jnp.float32)
    smoothing = float(label_smoothing)
    loss_sum, correct_sum = _vocabulary_cross_entropy(states, table, bias, targets, weights, smoothing)
    return TokenLoss(loss_sum, weights.sum(), correct_sum)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _vocabulary_cross_entropy(states, table, bias, targets, weights, smoothing):
    logits = jnp.einsum("...d,vd->...v", states, table, preferred_element_type=jnp.float32) + bias
    return _cross_entropy(logits, targets, weights, smoothing)


def _vocabulary_forward(states, table, bias, targets, weights, smoothing):
    """The sums, and the gradients of the first one."""
    forms = {"cpu": _in_chunks, "default": _at_once}
    forms = {name: functools.partial(form, smoothing=smoothing) for name, form in forms.items()}
    return jax.lax.platform_dependent(states, table, bias, targets, weights, **forms)


def _at_once(states, table, bias, targets, weights, smoothing):
    def loss(states, table, bias):
        logits = jnp.einsum("...d,vd->...v", states, table, preferred_element_type=jnp.float32) + bias
        loss_sum, correct_sum = _cross_entropy(logits, targets, weights, smoothing)
        return loss_sum, (loss_sum, correct_sum)

    (to_states, to_table, to_bias), sums = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(states, table, bias)
    return sums, (to_states, to_table.astype(jnp.float32), to_bias)


def _in_chunks(states, table, bias, targets, weights, smoothing):
    vocabulary, width = table.shape
    shape = states.shape

    def chunk(gradients, part):
        states, targets, weights = part
        logits = jnp.einsum("...d,vd->...v", states, table, preferred_element_type=jnp.float32) + bias
        largest = jnp.max(logits, axis=-1)
        exponentials = jnp.exp(logits - largest[..., None])
        total = jnp.sum(exponentials, axis=-1)
        target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        loss = largest + jnp.log(total) - (1.0 - smoothing) * target_logit
        if smoothing:
            loss -= smoothing * jnp.mean(logits, axis=-1)
        is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
        labels = jnp.where(is_target, np.float32(1.0 - smoothing), 0.0) + np.float32(smoothing / vocabulary)
        counts = (weights != 0)[..., None]
        to_logits = jnp.where(counts, weights[..., None] * (exponentials / total[..., None] - labels), 0.0)
        narrow = to_logits.astype(states.dtype)
        to_table, to_bias = gradients
        # The smaller factor is the one that is transposed.
        to_table += jnp.einsum("...d,...v->dv", states, narrow, preferred_element_type=jnp.float32)
        to_bias += jnp.sum(to_logits, axis=range(to_logits.ndim - 1))
        sums = (
            jnp.sum(jnp.where(weights != 0, loss * weights, 0.0)),
            jnp.sum(jnp.where(target_logit >= largest, weights, 0.0)),
        )
        to_states = jnp.einsum("...v,vd->...d", narrow, table, preferred_element_type=jnp.float32).astype(states.dtype)
        return (to_table, to_bias), (sums, to_states)

    parts = [_chunks(array, targets.ndim - 1) for array in (states, targets, weights)]
    nothing = (jnp.zeros((width, vocabulary)), jnp.zeros(vocabulary))
    (to_table, to_bias), (sums, to_states) = jax.lax.scan(chunk, nothing, parts)
    to_states = jnp.moveaxis(to_states, 0, targets.ndim - 1).reshape(*shape[:-2], -1, width)[..., : shape[-2], :]
    return tuple(jnp.sum(each) for each in sums), (to_states, to_table.T, to_bias)


def _chunks(array: jax.Array, axis: int) -> jax.Array:
    """[.., tokens, ..] -> [chunks, .., tokens of a chunk, ..], filled up with zeros."""
    tokens = array.shape[axis]
    rows = min(max(_CHUNK // math.prod(array.shape[:axis]), 1), tokens)
    count = -(-tokens // rows)
    array = jnp.pad(array, [(0, count * rows - tokens) if at == axis else (0, 0) for at in range(array.ndim)])
    return jnp.moveaxis(array.reshape(*array.shape[:axis], count, rows, *array.shape[axis + 1 :]), axis, 0)


def _vocabulary_backward(smoothing, gradients, cotangents):
    to_states, to_table, to_bias = gradients
    scale = cotangents[0]
    # Each gradient has the dtype of its argument.
    return (
        (scale * to_states).astype(to_states.dtype),
        (scale * to_table).astype(to_states.dtype),
        scale * to_bias,
        None,
        None,
    )


_vocabulary_cross_entropy.defvjp(_vocabulary_forward, _vocabulary_backward)
