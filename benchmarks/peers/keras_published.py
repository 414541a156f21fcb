"""The published Keras image captioner (keras.io, "Image captioning"), reimplemented from its description.

A frozen EfficientNetB0 without its classifier computes features of 7 x 7 x 1,280 per image. An encoder block (layer
norm, a dense layer with ReLU, single-head self-attention, layer norm) and a decoder block (self-attention and
cross-attention with two heads, a dense layer of the same width with ReLU, dropout 0.3 and 0.5) compute probabilities
over the vocabulary. The image network is run in every epoch. For each caption of an image, there is a separate forward
pass of both blocks, followed by a separate Adam update (`updates="caption"`). With `updates="batch"`, which is faster
than the published design, a single forward pass and update process all captions.

The head dimension is `width / heads`, as in our decoder. In the published design, each head has the full width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PAD = 1


@dataclass(frozen=True)
class Design:
    """Dimensions of the encoder and decoder blocks."""

    width: int = 512
    feed_forward: int = 512
    vocabulary_size: int = 10_000
    length: int = 25


def make_train_step(
    design: Design, inputs: np.ndarray, tokens: np.ndarray, *, is_features: bool, updates: str
) -> Callable[[], Any]:
    """Returns a function that trains on the batch once, compiled by `tf.function`.

    Args:
        design: Dimensions of the blocks.
        inputs: Images, uint8 [batch, size, size, 3], or their EfficientNetB0 features [batch, positions, 1280].
        tokens: Captions, int32 [batch, captions, length].
        is_features: Whether `inputs` are features.
        updates: "caption" for one update per caption, "batch" for one update per batch.
    """
    import keras
    import tensorflow as tf

    batch, captions, length = tokens.shape
    backbone = None
    if not is_features:
        backbone = keras.applications.EfficientNetB0(input_shape=inputs.shape[1:], include_top=False, weights=None)
        backbone.trainable = False
    encode, decode = _build_encoder(design, keras), _build_decoder(design, keras)
    optimizer = keras.optimizers.Adam()
    encode(tf.zeros((1, 1, 1280)))
    decode([tf.zeros((1, length - 1), tf.int32), tf.zeros((1, 1, design.width))])
    weights = encode.trainable_weights + decode.trainable_weights
    optimizer.build(weights)

    def compute_loss(memory: Any, caption_tokens: Any) -> Any:
        probabilities = decode([caption_tokens[:, :-1], memory], training=True)
        targets = caption_tokens[:, 1:]
        mask = tf.cast(targets != PAD, tf.float32)
        loss = keras.losses.sparse_categorical_crossentropy(targets, probabilities)
        return tf.reduce_sum(loss * mask) / tf.reduce_sum(mask)

    def update(forward: Callable[[], Any]) -> Any:
        with tf.GradientTape() as tape:
            loss = forward()
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    @tf.function
    def step(inputs: Any, tokens: Any) -> Any:
        if backbone is None:
            features = tf.cast(inputs, tf.float32)
        else:
            features = backbone(tf.cast(inputs, tf.float32), training=False)
            features = tf.reshape(features, (batch, -1, features.shape[-1]))
        if updates == "batch":

            def compute_batch_loss() -> Any:
                memory = tf.repeat(encode(features, training=True), captions, axis=0)
                return compute_loss(memory, tf.reshape(tokens, (batch * captions, length)))

            return update(compute_batch_loss)
        losses = [
            update(lambda index=index: compute_loss(encode(features, training=True), tokens[:, index]))
            for index in range(captions)
        ]
        return tf.add_n(losses) / captions

    return lambda: float(step(tf.constant(inputs), tf.constant(tokens)))


def _build_encoder(design: Design, keras: Any) -> Any:
    layers = keras.layers
    inputs = keras.Input((None, 1280))
    x = layers.LayerNormalization()(inputs)
    x = layers.Dense(design.width, activation="relu")(x)
    attended = layers.MultiHeadAttention(1, design.width)(x, x)
    return keras.Model(inputs, layers.LayerNormalization()(x + attended))


def _build_decoder(design: Design, keras: Any) -> Any:
    layers, width, heads = keras.layers, design.width, 2
    tokens, memory = keras.Input((design.length - 1,), dtype="int32"), keras.Input((None, width))
    positions = keras.ops.arange(design.length - 1)
    x = layers.Embedding(design.vocabulary_size, width)(tokens) * width**0.5
    x = x + layers.Embedding(design.length, width)(positions)
    attention = {"num_heads": heads, "key_dim": width // heads, "dropout": 0.1}
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(**attention)(x, x, use_causal_mask=True))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(**attention)(x, memory))
    y = layers.Dropout(0.3)(layers.Dense(design.feed_forward, activation="relu")(x))
    x = layers.LayerNormalization()(x + layers.Dense(width)(y))
    probabilities = layers.Dense(design.vocabulary_size, activation="softmax")(layers.Dropout(0.5)(x))
    return keras.Model([tokens, memory], probabilities)
