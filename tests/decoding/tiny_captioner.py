"""A captioner with a vocabulary of three words, small enough to enumerate all captions."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from caption_jax.models.backbones.efficientnet import EfficientNet
from caption_jax.models.captioning_model import ImageCaptioningModel
from caption_jax.models.decoder import Decoder
from caption_jax.models.image_encoder import ImageEncoder
from input_pipeline.special_tokens import BOS, EOS, PAD

WORDS = (3, 4, 5)
VOCABULARY_SIZE, LENGTH, WIDTH, MEMORY_LENGTH = 6, 4, 8, 3  # LENGTH is the number of tokens after <s>

MODEL = ImageCaptioningModel(
    image_encoder=ImageEncoder(EfficientNet("micro"), width=WIDTH),
    decoder=Decoder(VOCABULARY_SIZE, layers=1, width=WIDTH, heads=2, feed_forward=8, max_length=LENGTH + 1),
)


@functools.cache
def _variable_shapes():
    tokens, memory = jnp.zeros((1, 1, LENGTH), jnp.int32), jnp.zeros((1, MEMORY_LENGTH, WIDTH))
    return jax.eval_shape(functools.partial(MODEL.init, method="decode"), jax.random.key(0), tokens, memory)


def make_random_captioner(seed: int, images: int = 2, scale: float = 0.7):
    """Returns randomly initialised variables of `MODEL` and the memory of `images` images.

    With the default scale, next-token distributions are neither uniform nor peaked.
    """
    rng = np.random.default_rng(seed)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return (scale * rng.normal(size=shape)).astype(np.float32)

    variables = jax.tree.map(lambda leaf: normal(leaf.shape), _variable_shapes())
    return variables, normal((images, MEMORY_LENGTH, WIDTH))


@jax.jit
def _run_teacher_forced(variables, memory, tokens):
    return jax.nn.log_softmax(MODEL.apply(variables, tokens, memory, method="decode").logits)


def compute_next_log_probs(variables, memory) -> list[dict[tuple[int, ...], np.ndarray]]:
    """Computes the next-token log-probabilities after each prefix, per image, with forward passes without a cache."""
    prefixes = list(itertools.product(WORDS, repeat=LENGTH - 1))
    tokens = np.array([[BOS, *prefix] for prefix in prefixes], np.int32)
    tokens = np.broadcast_to(tokens, (len(memory), *tokens.shape))
    log_probs = np.asarray(_run_teacher_forced(variables, memory, tokens), np.float64)
    return [
        {prefix[:t]: image_log_probs[i, t] for i, prefix in enumerate(prefixes) for t in range(LENGTH)}
        for image_log_probs in log_probs
    ]


def enumerate_captions() -> list[tuple[int, ...]]:
    """Returns all possible captions, which end in </s> or are truncated to `LENGTH` tokens."""
    finished = [(*words, EOS) for count in range(LENGTH) for words in itertools.product(WORDS, repeat=count)]
    return finished + list(itertools.product(WORDS, repeat=LENGTH))


def pad_caption(caption: tuple[int, ...]) -> list[int]:
    """Returns the caption padded to `LENGTH`."""
    return [*caption, *[PAD] * (LENGTH - len(caption))]
