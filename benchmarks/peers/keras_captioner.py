"""The captioner of `configs/coco.py` in Keras on the JAX backend: EfficientNetB0 and a decoder of Keras layers.

    KERAS_BACKEND=jax python -m benchmarks.peers.keras_captioner --workload=train_step --batch=16

Runs as a child process of a benchmark, which controls it via standard input; see `benchmarks.alternate.serve`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.alternate import serve, use_cores


class Positions(layers.Layer):
    """Learned position embeddings, added to the input."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the embeddings."""
        self.embedding = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02))

    def call(self, x: Any) -> Any:
        """Returns the input plus the position embeddings."""
        return x + self.embedding


def build_captioner(
    vocabulary_size: int, length: int, width: int = 512, depth: int = 6, heads: int = 8, hidden: int = 2048
) -> keras.Model:
    """Returns a pre-norm captioner with tied embeddings.

    Its inputs are pixels [batch, 224, 224, 3] in 0..255 and tokens [batch, length]; its outputs are logits
    [batch, length, vocabulary].
    """
    images, tokens = layers.Input((224, 224, 3)), layers.Input((length,), dtype="int32")
    backbone = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(224, 224, 3))
    grid = layers.Dense(width)(layers.Reshape((49, 1280))(backbone(images)))
    memory = layers.Dropout(0.1)(layers.LayerNormalization()(Positions()(grid)))
    embedding = layers.ReversibleEmbedding(vocabulary_size, width)
    x = layers.Dropout(0.1)(layers.LayerNormalization()(Positions()(embedding(tokens))))
    for _ in range(depth):
        y = layers.LayerNormalization()(x)
        x = x + layers.Dropout(0.1)(layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=True))
        y = layers.LayerNormalization()(x)
        x = x + layers.Dropout(0.1)(layers.MultiHeadAttention(heads, width // heads)(y, memory))
        y = layers.Dense(hidden, activation=lambda z: keras.ops.gelu(z, approximate=True))(
            layers.LayerNormalization()(x)
        )
        x = x + layers.Dropout(0.1)(layers.Dense(width)(layers.Dropout(0.1)(y)))
    return keras.Model([images, tokens], embedding(layers.LayerNormalization()(x), reverse=True))


def make_train_step(batch: int, vocabulary_size: int, length: int) -> Callable[[], Any]:
    """Returns a function that performs one update of all parameters on random data."""
    model = build_captioner(vocabulary_size, length - 1)
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.01, beta_2=0.98, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 224, 224, 3)).astype(np.float32)
    tokens = rng.integers(3, vocabulary_size, (batch, length)).astype(np.int32)
    return lambda: model.train_on_batch([images, tokens[:, :-1]], tokens[:, 1:])


def make_forward_pass(batch: int) -> Callable[[], Any]:
    """Returns a function that runs the jitted forward pass of the encoder."""
    import jax

    model = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(224, 224, 3))
    images = np.random.default_rng(0).uniform(0, 255, (batch, 224, 224, 3)).astype(np.float32)
    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    forward = jax.jit(lambda trainable, others, x: model.stateless_call(trainable, others, x, training=False)[0])
    return lambda: jax.block_until_ready(forward(trainable, others, images))


def main() -> None:
    """Serves the selected workload as a child process of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=["train_step", "encoder"], required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the training step")
    options = parser.parse_args()
    use_cores(options.cores)
    if keras.backend.backend() != "jax":
        parser.error("this peer runs Keras on JAX: set KERAS_BACKEND=jax")
    if options.workload == "encoder":
        serve(make_forward_pass(options.batch), warm_ups=1, untimed_runs=5)
    else:
        keras.config.set_dtype_policy("mixed_bfloat16" if options.dtype == "bfloat16" else "float32")
        serve(make_train_step(options.batch, options.vocabulary, options.length), warm_ups=1, untimed_runs=1)


if __name__ == "__main__":
    main()
